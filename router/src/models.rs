//! `/v1/models`: what the decode engines serve, as one list; in a decode pod also its engine's `/metrics`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::ApiError;
use crate::headers::toward_client;
use crate::metrics::Outcome;
use crate::router::Shared;
use crate::targets::{Pod, Side};

/// Longest wait for an engine's list of models.
const DEADLINE: Duration = Duration::from_secs(10);

/// The local engine's metrics, in a decode pod.
pub(crate) async fn figures(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response<Body> {
    let Some(pod) = shared.board.fleet().side(Side::Decode).first().cloned() else {
        return ApiError::not_ready("there is no decode engine".to_owned()).into_response();
    };
    match shared.engines.get(&pod.engine, "/metrics", &headers, DEADLINE).await {
        Ok(answer) => {
            let (head, body) = answer.into_parts();
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = head.status;
            *response.headers_mut() = toward_client(head.headers);
            response
        }
        Err(error) => {
            tracing::warn!(pod = %pod.id, error = &error as &dyn std::error::Error, "the engine's metrics cannot be read");
            let message = "the decode engine does not tell its metrics".to_owned();
            ApiError::new(StatusCode::BAD_GATEWAY, "decode_unreachable", message, Outcome::Failed).into_response()
        }
    }
}

/// A model that only some decode engines serve is listed too. Engines that do not answer are left out as long as one does.
pub(crate) async fn list(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response<Body> {
    let pods = decode_pods(&shared);
    if pods.is_empty() {
        return ApiError::not_ready("there is no decode engine".to_owned()).into_response();
    }
    let asked = pods.iter().map(async |pod| {
        let answer = shared.engines.get(&pod.engine, "/v1/models", &headers, DEADLINE).await;
        answer
            .inspect_err(|error| {
                tracing::warn!(pod = %pod.id, error = error as &dyn std::error::Error, "models are not listed");
            })
            .ok()
    });
    let mut answers: Vec<Response<Bytes>> = join_all(asked).await.into_iter().flatten().collect();
    if answers.iter().any(|answer| answer.status().is_success()) {
        answers.retain(|answer| answer.status().is_success());
    }
    let merged = merge(answers.iter().map(Response::body));
    let several = answers.len() > 1;
    let Some(first) = answers.into_iter().next() else {
        let message = "no decode engine lists its models".to_owned();
        return ApiError::new(StatusCode::BAD_GATEWAY, "decode_unreachable", message, Outcome::Failed).into_response();
    };
    let (head, body) = first.into_parts();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = head.status;
    *response.headers_mut() = toward_client(head.headers);
    *response.body_mut() = match merged.filter(|_| several && head.status.is_success()) {
        Some(list) => {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(list.len()));
            Body::from(list)
        }
        None => Body::from(body),
    };
    response
}

/// Those with a ready rank; all, when there is none.
fn decode_pods(shared: &Shared) -> Vec<Arc<Pod>> {
    let mut seen = BTreeSet::new();
    let ranks = shared.board.ranks(Side::Decode);
    let mut pods = |only_ready: bool| -> Vec<Arc<Pod>> {
        let wanted = ranks.iter().filter(|candidate| candidate.view.ready || !only_ready);
        wanted.map(|candidate| &candidate.target.pod).filter(|pod| seen.insert(pod.id)).cloned().collect()
    };
    let ready = pods(true);
    if ready.is_empty() { pods(false) } else { ready }
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// Every model once, as the first engine that has it describes it. `None` when an answer is no list.
fn merge<'a>(lists: impl Iterator<Item = &'a Bytes>) -> Option<String> {
    let mut seen = BTreeSet::new();
    let mut models = Vec::new();
    for list in lists {
        let List { data } = serde_json::from_slice(list).ok()?;
        for model in data {
            let Model { id } = serde_json::from_str(model.get()).ok()?;
            if seen.insert(id) {
                models.push(model.get());
            }
        }
    }
    Some(format!(r#"{{"object":"list","data":[{}]}}"#, models.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_listed_once() {
        let lists = [
            r#"{"data":[{"id":"a","x":1.0},{"id":"b"}]}"#,
            r#"{"object":"list","data":[{"id":"b","y":2},{"id":"c"}]}"#,
        ]
        .map(Bytes::from);
        let merged = merge(lists.iter()).unwrap();
        assert_eq!(merged, r#"{"object":"list","data":[{"id":"a","x":1.0},{"id":"b"},{"id":"c"}]}"#);
        assert_eq!(merge([Bytes::from("[]")].iter()), None);
    }
}

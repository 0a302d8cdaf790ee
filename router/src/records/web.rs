//! `/v1/requests`: for operators. Where it is mounted decides who may ask, and whether addresses are shown.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::Router as Routes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path as Segment, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::join_all;
use http::StatusCode;
use kv::ids::AttemptId;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::shown::{Addresses, Said, shown};
use super::{Filter, Record};
use crate::error::ApiError;
use crate::headers::Path;
use crate::metrics::Outcome;
use crate::router::Shared;
use crate::trail::Attempt;

/// Longest wait for what the sidecars say.
const SIDECARS_DEADLINE: Duration = Duration::from_secs(2);

/// Requests that are listed when nobody says how many, and the most.
const LISTED: usize = 100;
const MAX_LISTED: usize = 1000;

/// The routes, for readers who may see addresses or not.
pub(crate) fn routes(addresses: bool) -> Routes<Arc<Shared>> {
    Routes::new()
        .route("/v1/requests", get(list))
        .route("/v1/requests/{id}", get(one))
        .layer(Extension(Addresses(addresses)))
}

#[derive(Debug, Deserialize)]
struct ListQuery {
    slowest: Option<usize>,
    limit: Option<usize>,
    outcome: Option<String>,
    path: Option<String>,
}

impl ListQuery {
    fn filter(&self) -> Result<Filter, ApiError> {
        let at_most = self.slowest.or(self.limit).unwrap_or(LISTED).min(MAX_LISTED);
        let outcome = word(self.outcome.as_deref(), "outcome", Outcome::ALL, Outcome::as_str)?;
        let path = word(self.path.as_deref(), "path", Path::ALL, Path::as_str)?;
        Ok(Filter { outcome, path, slowest: self.slowest.is_some(), at_most })
    }
}

fn word<T: Copy, const N: usize>(
    text: Option<&str>,
    name: &str,
    all: [T; N],
    as_str: fn(T) -> &'static str,
) -> Result<Option<T>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    all.into_iter().find(|one| as_str(*one) == text).map(Some).ok_or_else(|| {
        let words: Vec<&str> = all.into_iter().map(as_str).collect();
        let message = format!("{name} must be one of {}", words.join(", "));
        ApiError::client(StatusCode::BAD_REQUEST, "query_invalid", message)
    })
}

/// `GET /v1/requests?slowest=N&outcome=&path=&limit=`.
async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(addresses): Extension<Addresses>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Response {
    let filter = match query {
        Ok(Query(query)) => query.filter(),
        Err(_) => {
            let message = "slowest and limit must be numbers";
            Err(ApiError::client(StatusCode::BAD_REQUEST, "query_invalid", message))
        }
    };
    match filter {
        Ok(filter) => {
            let records = shared.metrics.records().list(&filter);
            let listed: Vec<Value> = records.iter().map(|record| shown(record, addresses, &[])).collect();
            Json(json!({ "requests": listed })).into_response()
        }
        Err(error) => error.into_response(),
    }
}

/// `GET /v1/requests/{id}`, by the router's id, the client's or an attempt's; with what D's sidecar says of each transfer, asked now.
async fn one(
    State(shared): State<Arc<Shared>>,
    Extension(addresses): Extension<Addresses>,
    Segment(id): Segment<String>,
) -> Response {
    let Some(record) = shared.metrics.records().find(&id) else {
        let message = "no such request has ended lately";
        return ApiError::client(StatusCode::NOT_FOUND, "not_found", message).into_response();
    };
    let said = ask_sidecars(&shared, &record).await;
    Json(shown(&record, addresses, &said)).into_response()
}

async fn ask_sidecars(shared: &Shared, record: &Record) -> Vec<Said> {
    let asked = record.trail.tries.iter().filter(|attempt| attempt.transfer.from.is_some());
    join_all(asked.map(|attempt| ask_sidecar(shared, record, attempt))).await.into_iter().flatten().collect()
}

async fn ask_sidecar(shared: &Shared, record: &Record, attempt: &Attempt) -> Option<Said> {
    let sidecar = attempt.decode_target.as_ref()?.pod.sidecar.as_ref()?;
    let name = AttemptId::new(record.trail.attempt_id(attempt));
    let asked = shared.sidecars.stages(sidecar, attempt.transfer_id.as_ref(), &name);
    let said = match timeout(SIDECARS_DEADLINE, asked).await {
        Ok(Ok(Some(stages))) => Ok(stages),
        Ok(Ok(None)) => Err("not_found"),
        Ok(Err(error)) if error.may_be_running() || error.code() == "sidecar_unreachable" => Err("sidecar_unreachable"),
        Ok(Err(_)) => Err("not_found"),
        Err(_) => Err("sidecar_timeout"),
    };
    Some((attempt.number, said))
}

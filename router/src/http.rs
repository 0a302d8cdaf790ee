//! The router's own HTTP API: OpenAI's two endpoints and models, and what operators ask.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router as Routes;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use vllm_wire::body::Endpoint;

use crate::choice::{Avoid, Terms, Wish};
use crate::config::Pairing;
use crate::error::ApiError;
use crate::headers::toward_client;
use crate::metrics::{MEDIA_TYPE, Outcome};
use crate::request;
use crate::router::Shared;
use crate::targets::{Candidate, Side};

/// Longest wait for an engine's list of models.
const MODELS_DEADLINE: Duration = Duration::from_secs(10);

/// All routes.
pub(crate) fn routes(shared: Arc<Shared>) -> Routes {
    Routes::new()
        .route(Endpoint::Completions.path(), post(completions))
        .route(Endpoint::Chat.path(), post(chat))
        .route("/v1/models", get(models))
        .route("/health", get(ready))
        .route("/readyz", get(ready))
        .route("/livez", get(|| async { "alive" }))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .merge(crate::records::routes(false))
        .fallback(async || {
            ApiError::client(StatusCode::NOT_FOUND, "not_found", "there is no such path").into_response()
        })
        .method_not_allowed_fallback(async || {
            let (status, code) = (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
            ApiError::client(status, code, "the path does not take this method").into_response()
        })
        .with_state(shared)
}

async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    request::serve(shared, Endpoint::Completions, request).await
}

async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    request::serve(shared, Endpoint::Chat, request).await
}

async fn version(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION"), "git_sha": shared.git_sha }))
}

/// The models are those of the decode engines, which all serve the same: any ready one is asked, else the first.
async fn models(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let avoid = Avoid::default();
    let terms = Terms { pairing: Pairing::Any, wish: Wish::default(), avoid: &avoid, turn: 0 };
    let ready = terms.alone(&shared.board).map(|target| target.pod);
    let pod = ready.or_else(|| shared.board.pods().find(|pod| pod.id.side == Side::Decode).cloned());
    let Some(pod) = pod else {
        return ApiError::not_ready("there is no decode engine".to_owned()).into_response();
    };
    match shared.engines.get(&pod.engine, "/v1/models", &headers, MODELS_DEADLINE).await {
        Ok(answer) => {
            let (head, body) = answer.into_parts();
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = head.status;
            *response.headers_mut() = toward_client(&head.headers);
            response
        }
        Err(error) => {
            tracing::warn!(pod = %pod.id, error = &error as &dyn std::error::Error, "models are not listed");
            let message = "the decode engine does not list its models".to_owned();
            ApiError::new(StatusCode::BAD_GATEWAY, "decode_unreachable", message, Outcome::Failed).into_response()
        }
    }
}

/// 200 when at least one pair can take a request; the body lists every target and, for operators, why it is not ready.
async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let avoid = Avoid::default();
    let terms = Terms { pairing: shared.config.choice.pairing, wish: Wish::default(), avoid: &avoid, turn: 0 };
    let draining = shared.admission.is_draining();
    let ready = !draining && terms.pair(&shared.board).is_some();
    let sides = [Side::Prefill, Side::Decode];
    let targets: Vec<Value> = sides.into_iter().flat_map(|side| shared.board.ranks(side)).map(shown).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({ "ready": ready, "draining": draining, "inside": shared.admission.inside(), "targets": targets });
    (status, Json(body)).into_response()
}

fn shown(candidate: Candidate) -> Value {
    let Candidate { target, view, occupied } = candidate;
    json!({
        "target": target.id().to_string(),
        "engine": format!("{}@{}", target.pod.engine, target.local),
        "dp_rank": target.rank.0,
        "ready": view.ready,
        "state": view.state,
        "reasons": view.reasons,
        "in_flight": occupied,
        "running": view.running,
        "waiting": view.waiting,
    })
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match shared.metrics.page() {
        Ok(page) => ([(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], page).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

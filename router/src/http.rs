//! The router's own HTTP API: OpenAI's and Anthropic's endpoints, models, what operators ask; anything else is passed on.

use std::sync::Arc;

use axum::Router as Routes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Json};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde_json::{Value, json};
use telemetry::exposition;
use vllm_wire::body::Endpoint;

use crate::choice::{Avoid, Terms, Wish};
use crate::error::{ApiError, Dialect};
use crate::guard::{Door, Operator};
use crate::models;
use crate::pod_local::Prefillers;
use crate::request;
use crate::router::Shared;
use crate::targets::{Candidate, Side};

/// All routes of one door; its guard stands before them.
pub(crate) fn routes(shared: Arc<Shared>, door: Door) -> Routes {
    // A gateway's picker reads the engine's figures where it sends requests; this router's own are on the operators' port.
    let figures = match (&shared.gateway, door) {
        (Some(_), Door::Clients) => get(models::figures),
        (Some(_), Door::Operators) | (None, _) => get(metrics),
    };
    Routes::new()
        .route(Endpoint::Completions.path(), served(Endpoint::Completions))
        .route(Endpoint::Chat.path(), served(Endpoint::Chat))
        .route(Endpoint::Responses.path(), served(Endpoint::Responses))
        .route(Endpoint::Messages.path(), served(Endpoint::Messages))
        .route("/v1/models", get(models::list))
        .route("/health", get(ready))
        .route("/readyz", get(ready))
        .route("/livez", get(|| async { "alive" }))
        .route("/metrics", figures)
        .route("/version", get(version))
        .merge(crate::records::routes(door == Door::Operators))
        .merge(crate::workers::admin_routes())
        .merge(crate::log_level::routes())
        .fallback(proxied)
        .method_not_allowed_fallback(async |uri: Uri| {
            let (status, code) = (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
            let error = ApiError::client(status, code, "the path does not take this method");
            error.response_in(Dialect::of(uri.path()))
        })
        .with_state(shared)
}

fn served(endpoint: Endpoint) -> MethodRouter<Arc<Shared>> {
    post(async move |State(shared): State<Arc<Shared>>, request: Request| {
        request::serve(shared, endpoint, request).await
    })
}

async fn proxied(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    request::proxy::serve(shared, request).await
}

async fn version(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION"), "git_sha": shared.git_sha }))
}

/// 200 when at least one pair (in a decode pod: one decode rank) can take a request; the body lists every target and, for operators, why it is not ready.
async fn ready(State(shared): State<Arc<Shared>>, operator: Option<Extension<Operator>>) -> Response {
    let avoid = Avoid::default();
    let (pairing, wish, prefillers) = (shared.config.choice.pairing, Wish::default(), &Prefillers::Any);
    let terms = Terms { pairing, wish, prefillers, avoid: &avoid, by: None };
    let draining = shared.admission.is_draining();
    // In a decode pod, who prefills is known with each request only.
    let somebody = match shared.gateway {
        None => terms.pair(&shared.board).is_some(),
        Some(_) => terms.alone(&shared.board).is_some(),
    };
    let ready = !draining && somebody;
    let sides = [Side::Prefill, Side::Decode];
    let targets: Vec<Value> = sides
        .into_iter()
        .flat_map(|side| shared.board.ranks(side))
        .map(|rank| shown(rank, operator.is_some()))
        .collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body =
        json!({ "ready": ready, "draining": draining, "inside": shared.admission.inside(), "targets": targets });
    let discovery = shared.discovery.shown();
    if operator.is_some()
        && !discovery.is_empty()
        && let Some(body) = body.as_object_mut()
    {
        body.insert("discovery".to_owned(), discovery.into());
    }
    (status, Json(body)).into_response()
}

/// Addresses and reasons, which may hold some, are for operators.
fn shown(candidate: Candidate, operator: bool) -> Value {
    let Candidate { target, view, occupied } = candidate;
    let mut rank = json!({
        "target": target.id().to_string(),
        "dp_rank": target.rank.0,
        "ready": view.ready,
        "state": view.state,
        "in_flight": occupied,
        "running": view.running,
        "waiting": view.waiting,
    });
    if operator && let Some(rank) = rank.as_object_mut() {
        rank.insert("engine".to_owned(), format!("{}@{}", target.pod.engine, target.local).into());
        rank.insert("reasons".to_owned(), view.reasons.into());
    }
    rank
}

async fn metrics(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    match shared.metrics.page() {
        Ok(page) => {
            let page = exposition::negotiated(accept, page);
            ([(header::CONTENT_TYPE, HeaderValue::from_static(page.media_type))], page.text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

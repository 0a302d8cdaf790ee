//! vLLM's HTTP surface, as far as a router and a sidecar use it.
//!
//! | module | is |
//! |---|---|
//! | `call` | a request body, read and checked |
//! | `prompt` | prompts and chats as token ids |
//! | `rank` | which DP rank serves a request |
//! | `generate` | starts the jobs of a call |
//! | `answer` | the whole answer of a call that does not stream |
//! | `stream` | server-sent events of one that does |
//! | `error` | errors in vLLM's form |
//! | `metrics` | `/metrics` |

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::Engine;
use crate::wall;

mod answer;
mod call;
mod error;
mod generate;
mod metrics;
mod prompt;
mod rank;
mod stream;

pub use error::ApiError;

use call::{Call, Endpoint};

/// Larger bodies are refused.
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

/// What the handlers need.
#[derive(Debug)]
pub struct Api {
    /// The ranks of this pod, by local rank.
    pub engines: Vec<Arc<Engine>>,
    /// The model's name.
    pub model: String,
    /// The vLLM version that it says it is.
    pub vllm_version: String,
    /// The model's length in tokens.
    pub max_model_len: u64,
    /// When this process started, seconds since 1970.
    pub started: u64,
    /// Where jobs run.
    pub tasks: TaskTracker,
    /// Cancelled when the pod stops: every job is aborted.
    pub stop: CancellationToken,
}

/// The routes.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics_page))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(api)
}

async fn completions(State(api): State<Arc<Api>>, headers: HeaderMap, body: Bytes) -> Response {
    serve(&api, Endpoint::Completions, &headers, &body).await
}

async fn chat(State(api): State<Arc<Api>>, headers: HeaderMap, body: Bytes) -> Response {
    serve(&api, Endpoint::Chat, &headers, &body).await
}

async fn serve(api: &Arc<Api>, endpoint: Endpoint, headers: &HeaderMap, body: &[u8]) -> Response {
    let call = match Call::parse(endpoint, headers, body, api) {
        Ok(call) => call,
        Err(error) => return error.into_response(),
    };
    let chosen = rank::choose(&api.engines, headers);
    let started = chosen.map(|engine| generate::start(api, &engine, &call));
    if call.stream {
        // vLLM checks the rank inside the generator: a streaming client sees 200 and an error event.
        return sse(stream::events(call, started));
    }
    match started {
        Ok(generation) => answer::whole(&call, generation).await.map_or_else(ApiError::into_response, into_json),
        Err(error) => error.into_response(),
    }
}

fn sse(events: Body) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    (StatusCode::OK, headers, events).into_response()
}

fn into_json(value: Value) -> Response {
    axum::Json(value).into_response()
}

async fn not_found() -> (StatusCode, axum::Json<Value>) {
    (StatusCode::NOT_FOUND, axum::Json(json!({"detail": "Not Found"})))
}

async fn models(State(api): State<Arc<Api>>) -> axum::Json<Value> {
    let model = json!({
        "id": api.model, "object": "model", "created": wall::unix_seconds(), "owned_by": "vllm",
        "root": api.model, "parent": null, "max_model_len": api.max_model_len,
    });
    axum::Json(json!({"object": "list", "data": [model]}))
}

async fn health() -> StatusCode {
    StatusCode::OK
}

async fn version(State(api): State<Arc<Api>>) -> axum::Json<Value> {
    axum::Json(json!({"version": api.vllm_version}))
}

async fn metrics_page(State(api): State<Arc<Api>>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, metrics::page(&api)).into_response()
}

//! `/v1/log-level`: what is logged, while the router runs. The path is the operators'.

use std::sync::Arc;

use axum::Json;
use axum::Router as Routes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use crate::error::ApiError;
use crate::router::Shared;

/// `GET` and `PUT`, as the sidecar's.
pub(crate) fn routes() -> Routes<Arc<Shared>> {
    Routes::new().route("/v1/log-level", get(show).put(change))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    filter: String,
}

async fn show(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "filter": shared.log_filter.current() }))
}

/// `{"filter": "info,router=debug"}`, the same words as `--log`.
async fn change(State(shared): State<Arc<Shared>>, Json(wanted): Json<Wanted>) -> Response {
    let Wanted { filter } = wanted;
    let before = shared.log_filter.current();
    if let Err(error) = shared.log_filter.change(&filter) {
        let message = format!("filter {error}");
        return ApiError::client(StatusCode::BAD_REQUEST, "log_filter_invalid", message).into_response();
    }
    info!(before, filter, "log filter changed");
    Json(json!({ "filter": filter })).into_response()
}

//! `/v1/log-level`: what is logged, while the process runs.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use crate::http::Api;
use crate::http::input::JsonBody;
use crate::problem::Problem;

/// `PUT /v1/log-level`.
#[derive(Debug, Deserialize)]
pub(super) struct LogLevelBody {
    filter: String,
}

/// `GET /v1/log-level`.
pub(super) async fn show(State(api): State<Api>) -> Json<Value> {
    Json(json!({ "filter": api.0.log_filter.current() }))
}

/// `PUT /v1/log-level`: `{"filter": "info,sidecar=debug"}`, the same words as `--log`.
pub(super) async fn change(
    State(api): State<Api>,
    JsonBody(body): JsonBody<LogLevelBody>,
) -> Result<Json<Value>, Problem> {
    let before = api.0.log_filter.current();
    let changed = api.0.log_filter.change(&body.filter);
    changed.map_err(|error| Problem::field("filter", &error.to_string()))?;
    info!(before, filter = body.filter, "log filter changed");
    Ok(Json(json!({ "filter": body.filter })))
}

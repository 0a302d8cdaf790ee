//! `/v1/log-level`: what is logged, while the process runs.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use tracing::info;
use utoipa::ToSchema;

use crate::http::Api;
use crate::http::input::JsonBody;
use crate::http::openapi::answers;
use crate::problem::Problem;

/// What is logged.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(super) struct LogLevelJson {
    /// The words of `--log`
    #[schema(example = "info,sidecar=debug", max_length = 1024)]
    filter: String,
}

/// What is logged now
#[utoipa::path(
    get,
    path = "/v1/log-level",
    operation_id = "log_level",
    tag = "process",
    responses((status = 200, description = "The filter in effect", body = LogLevelJson), answers::Always),
)]
pub(super) async fn show(State(api): State<Api>) -> Json<LogLevelJson> {
    Json(LogLevelJson { filter: api.0.log_filter.current() })
}

/// Changes what is logged from now on
#[utoipa::path(
    put,
    path = "/v1/log-level",
    operation_id = "change_log_level",
    tag = "process",
    request_body = LogLevelJson,
    responses((status = 200, description = "The filter in effect", body = LogLevelJson), answers::Sent),
)]
pub(super) async fn change(
    State(api): State<Api>,
    JsonBody(body): JsonBody<LogLevelJson>,
) -> Result<Json<LogLevelJson>, Problem> {
    let before = api.0.log_filter.current();
    let changed = api.0.log_filter.change(&body.filter);
    changed.map_err(|error| Problem::field("filter", &error.to_string()))?;
    info!(before, filter = body.filter, "log filter changed");
    Ok(Json(body))
}

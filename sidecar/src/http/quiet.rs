//! `/quietz`: what a hook before an engine's end waits for.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use crate::config::parse;
use crate::http::Api;
use crate::http::input::QueryArgs;
use crate::http::openapi::{answers, schemas};
use crate::model::TransferError;
use crate::problem::Problem;

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(600);

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct QuietQuery {
    /// How long it must have been so, as in `5s`: until routers have learnt that the pod goes. Nothing unless given; ten minutes at most
    #[serde(rename = "for")]
    #[param(required = false, schema_with = schemas::time)]
    steady: Option<String>,
    /// How long to wait for it, as in `60s`. Ten seconds unless given; ten minutes at most
    #[param(required = false, schema_with = schemas::time)]
    wait: Option<String>,
}

/// `GET /quietz`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QuietJson {
    quiet: bool,
    /// None of them
    ranks: Vec<InUseJson>,
}

/// One rank whose engine is in use.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct InUseJson {
    dp_rank: u16,
    reasons: Vec<String>,
}

/// Answers once no request runs on the pod's engine and nobody needs a block of it any more: for the hook before its end
#[utoipa::path(
    get,
    path = "/quietz",
    operation_id = "quietz",
    tag = "process",
    params(QuietQuery),
    responses((status = 200, description = "The engine may end", body = QuietJson), answers::Quiet),
)]
pub(super) async fn quietz(
    State(api): State<Api>,
    QueryArgs(query): QueryArgs<QuietQuery>,
) -> Result<Json<QuietJson>, Problem> {
    let steady = time("for", query.steady.as_deref())?.unwrap_or_default();
    let wait = time("wait", query.wait.as_deref())?.unwrap_or(Duration::from_secs(10));
    let seen = tokio::select! {
        // Open requests hold up the end of the server.
        () = api.0.stop.cancelled() => return Err(Problem::from(&TransferError::ShuttingDown)),
        seen = api.pod().until_quiet(steady, wait) => seen,
    };
    let in_use = match seen {
        Ok(()) => return Ok(Json(QuietJson { quiet: true, ranks: Vec::new() })),
        Err(in_use) => in_use,
    };
    let ranks: Vec<InUseJson> =
        in_use.into_iter().map(|rank| InUseJson { dp_rank: rank.dp_rank.0, reasons: rank.reasons }).collect();
    Err(Problem::engine_in_use().with("ranks", json!(ranks)))
}

fn time(field: &str, text: Option<&str>) -> Result<Option<Duration>, Problem> {
    let time = text.map(parse::duration).transpose().map_err(|error| Problem::field(field, &error.to_string()))?;
    Ok(time.map(|time| time.min(LONGEST)))
}

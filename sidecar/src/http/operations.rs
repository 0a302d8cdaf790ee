//! What supervisors and monitoring ask: `/livez`, `/readyz`, `/metrics`, `/version`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use serde_json::{Value, json};
use telemetry::exposition;
use tracing::error;

use crate::http::Api;
use crate::model::{Code, RankSnapshot, RankState};
use crate::problem::{self, Problem};

/// Fails only when an agent thread is dead or stuck: the one thing that a restart heals.
pub(super) async fn livez(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    if api.pod().alive() { Ok(Json(json!({ "alive": true }))) } else { Err(Problem::not_alive()) }
}

/// Succeeds when at least one owned rank takes work; the body lists all of them either way.
pub(super) async fn readyz(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    let ranks = api.pod().ranks().borrow().clone();
    let listed: Value = ranks.iter().map(brief).collect();
    if api.0.gate.is_cancelled() {
        return Err(Problem::new(Code::ShuttingDown, "the sidecar is draining").with("ranks", listed));
    }
    if ranks.iter().any(takes_work) {
        return Ok(Json(json!({ "ready": true, "ranks": listed })));
    }
    Err(Problem::new(Code::RankNotReady, "no DP rank of this pod is ready, see ranks").with("ranks", listed))
}

fn takes_work(rank: &RankSnapshot) -> bool {
    rank.state == RankState::Ready && !rank.draining
}

fn brief(rank: &RankSnapshot) -> Value {
    json!({
        "dp_rank": rank.dp_rank.0,
        "state": rank.state.as_str(),
        "reasons": rank.reasons,
        "draining": rank.draining,
    })
}

/// Prometheus' page, in the format that it asks for.
pub(super) async fn metrics(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Problem> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    match api.0.metrics.page() {
        Ok(page) => {
            let page = exposition::negotiated(accept, page);
            Ok(([(header::CONTENT_TYPE, page.media_type)], page.text).into_response())
        }
        Err(broken) => {
            error!(error = %problem::with_causes(&broken), "the metrics page cannot be written");
            Err(Problem::internal())
        }
    }
}

/// Which build this is, and which NIXL it runs on.
pub(super) async fn version(State(api): State<Api>) -> Json<Value> {
    let build = &api.0.build;
    Json(json!({
        "version": build.version,
        "git_sha": build.git_sha,
        "nixl": { "path": build.nixl_path, "version": build.nixl_version, "mock": build.nixl_mock },
    }))
}

//! What supervisors and monitoring ask: `/livez`, `/readyz`, `/metrics`, `/version`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use serde::Serialize;
use telemetry::exposition;
use tracing::error;
use utoipa::ToSchema;

use crate::http::Api;
use crate::http::openapi::{answers, schemas};
use crate::model::{Code, RankSnapshot, RankState};
use crate::problem::{self, Problem};

/// `GET /livez`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AliveJson {
    alive: bool,
}

/// Fails only when an agent thread is dead or stuck: the one thing that a restart heals
#[utoipa::path(
    get,
    path = "/livez",
    operation_id = "livez",
    tag = "process",
    responses((status = 200, description = "Alive", body = AliveJson), answers::Alive),
)]
pub(super) async fn livez(State(api): State<Api>) -> Result<Json<AliveJson>, Problem> {
    if api.pod().alive() { Ok(Json(AliveJson { alive: true })) } else { Err(Problem::not_alive()) }
}

/// `GET /readyz`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReadyJson {
    ready: bool,
    ranks: Vec<BriefRankJson>,
}

/// Whether a rank takes work, and why not.
#[derive(Debug, Serialize, ToSchema)]
struct BriefRankJson {
    dp_rank: u16,
    #[schema(schema_with = schemas::rank_state)]
    state: &'static str,
    reasons: Vec<String>,
    draining: bool,
}

/// Succeeds when at least one owned rank takes work; the body lists all of them either way
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readyz",
    tag = "process",
    responses((status = 200, description = "Ready", body = ReadyJson), answers::Ready),
)]
pub(super) async fn readyz(State(api): State<Api>) -> Result<Json<ReadyJson>, Problem> {
    let ranks = api.pod().ranks().borrow().clone();
    let listed: Vec<BriefRankJson> = ranks.iter().map(|rank| BriefRankJson::from(&**rank)).collect();
    let why_not = if api.0.gate.is_cancelled() {
        Problem::new(Code::ShuttingDown, "the sidecar is draining")
    } else if ranks.iter().any(|rank| takes_work(rank)) {
        return Ok(Json(ReadyJson { ready: true, ranks: listed }));
    } else {
        Problem::new(Code::RankNotReady, "no DP rank of this pod is ready, see ranks")
    };
    Err(why_not.with("ranks", serde_json::to_value(listed).unwrap_or_default()))
}

fn takes_work(rank: &RankSnapshot) -> bool {
    rank.state == RankState::Ready && !rank.draining
}

impl From<&RankSnapshot> for BriefRankJson {
    fn from(rank: &RankSnapshot) -> Self {
        Self {
            dp_rank: rank.dp_rank.0,
            state: rank.state.as_str(),
            reasons: rank.reasons.clone(),
            draining: rank.draining,
        }
    }
}

/// Prometheus' page, in the format that `Accept` asks for
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "process",
    responses(
        (status = 200, description = "All metrics, see docs/metrics.md", content(
            (String = exposition::OPENMETRICS),
            (String = exposition::PROMETHEUS),
        )),
        answers::Always,
    ),
)]
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

/// The build.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionJson {
    version: &'static str,
    git_sha: &'static str,
    nixl: NixlJson,
}

/// The NIXL that was loaded.
#[derive(Debug, Serialize, ToSchema)]
struct NixlJson {
    path: String,
    version: String,
    /// A mock, which moves nothing
    mock: bool,
}

/// Which build this is, and which NIXL it runs on
#[utoipa::path(
    get,
    path = "/version",
    operation_id = "version",
    tag = "process",
    responses((status = 200, description = "The build", body = VersionJson), answers::Always),
)]
pub(super) async fn version(State(api): State<Api>) -> Json<VersionJson> {
    let build = &api.0.build;
    let nixl = NixlJson { path: build.nixl_path.clone(), version: build.nixl_version.clone(), mock: build.nixl_mock };
    Json(VersionJson { version: build.version, git_sha: build.git_sha, nixl })
}

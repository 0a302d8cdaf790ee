//! Pods at run time: listed, added, drained, removed. These paths are the operators'.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::Router as Routes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::StatusCode;
use kv::ids::LocalRank;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tracing::info;

use crate::config::{Gate, PodUrl};
use crate::error::ApiError;
use crate::router::Shared;
use crate::targets::{AlreadyThere, Candidate, Pod, PodId, PodSpec, Side};

/// The longest that a drain is waited for in one call.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// How often a drain's end is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Ranks that one pod may have.
const MAX_RANKS: u16 = 1024;

/// The paths under `/v1/workers`.
pub(crate) fn admin_routes() -> Routes<Arc<Shared>> {
    Routes::new()
        .route("/v1/workers", get(list).post(add))
        .route("/v1/workers/{id}", delete(remove))
        .route("/v1/workers/{id}/drain", post(drain))
        .route("/v1/workers/{id}/resume", post(resume))
}

/// Every rank: where it is, its state and why, its breaker, its load.
async fn list(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let sides = [Side::Prefill, Side::Decode];
    let ranks = sides.into_iter().flat_map(|side| shared.board.ranks(side));
    Json(json!({ "workers": ranks.map(|rank| shown(&shared, &rank)).collect::<Vec<Value>>() }))
}

fn shown(shared: &Shared, Candidate { target, view, occupied }: &Candidate) -> Value {
    let rank = target.pod.ranks.get(usize::from(target.local.0));
    let drained = target.pod.is_draining() || rank.is_some_and(|rank| rank.is_draining());
    json!({
        "id": target.id().to_string(),
        "url": format!("{}@{}", target.pod.engine.to_string().trim_end_matches('/'), target.local),
        "sidecar": target.pod.sidecar.as_ref().map(ToString::to_string),
        "side": target.pod.id.side.as_str(),
        "dp_rank": target.rank.0,
        "ready": view.ready,
        "state": if drained { "drained" } else { view.state.as_str() },
        "reasons": view.reasons,
        "breaker": rank.map(|rank| rank.breaker.as_str()),
        "pod_breaker": target.pod.breaker.as_str(),
        "load": {
            "in_flight": occupied,
            "outstanding_tokens": rank.map(|rank| rank.tokens()),
            "running": view.running,
            "waiting": view.waiting,
            "kv_usage": f64::from(view.kv_usage) / 1000.0,
            "cached_blocks": shared.policies.known_of(target),
            "staging_used": f64::from(view.staging_used) / 1000.0,
        },
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Adding {
    /// As on the command line: `URL` or `URL,sidecar=URL`.
    url: String,
    side: SideJson,
    /// DP ranks behind the URL; else as many as the command line says.
    ranks: Option<u16>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SideJson {
    Prefill,
    Decode,
}

async fn add(State(shared): State<Arc<Shared>>, Json(adding): Json<Adding>) -> Result<Response, Refused> {
    let side = match adding.side {
        SideJson::Prefill => Side::Prefill,
        SideJson::Decode => Side::Decode,
    };
    let bad = |message: String| ApiError::client(StatusCode::BAD_REQUEST, "worker_invalid", message);
    let url: PodUrl = adding.url.parse().map_err(|error| bad(format!("url: {error}")))?;
    let url = url.with_sidecar_scheme(shared.config.targets.sidecar_scheme);
    if let (None, Some(https)) = (&shared.config.targets.upstream, url.https()) {
        return Err(Refused(bad(format!("{https} is https, and the router was started without --upstream-ca"))));
    }
    let ranks = adding.ranks.unwrap_or_else(|| shared.config.targets.ranks(side));
    if !(1..=MAX_RANKS).contains(&ranks) {
        return Err(Refused(bad(format!("ranks must be between 1 and {MAX_RANKS}"))));
    }
    let gated = matches!(shared.config.choice.gate, Gate::Stage);
    let spec = PodSpec { side, engine: url.engine, sidecar: gated.then_some(url.sidecar), ranks };
    let pod = shared.board.add(spec).map_err(|AlreadyThere(id)| {
        ApiError::client(StatusCode::CONFLICT, "worker_exists", format!("the engine is {id} already"))
    })?;
    info!(pod = %pod.id, engine = %pod.engine, ranks, "worker is added");
    shared.watchers.start(Arc::clone(&pod));
    Ok((StatusCode::CREATED, Json(json!({ "id": pod.id.to_string(), "ranks": ranks }))).into_response())
}

#[derive(Deserialize)]
struct Waiting {
    /// Seconds to wait for the end of what is under way.
    #[serde(default)]
    wait: f64,
}

/// No new work for a pod, or for one rank of it. Answers at once, or after `?wait=SECONDS` at the latest, with what is left.
async fn drain(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(Waiting { wait }): Query<Waiting>,
) -> Result<Json<Value>, Refused> {
    let worker = Worker::find(&shared, &id)?;
    worker.set_draining(true);
    info!(worker = %id, in_flight = worker.in_flight(), "worker is drained");
    let wait = Duration::try_from_secs_f64(wait).unwrap_or_default().min(MAX_WAIT);
    let empty = async {
        while worker.in_flight() > 0 {
            sleep(LOOK_EVERY).await;
        }
    };
    let drained = worker.in_flight() == 0 || timeout(wait, empty).await.is_ok();
    Ok(Json(json!({ "id": id, "draining": true, "drained": drained, "in_flight": worker.in_flight() })))
}

/// Takes a drain back.
async fn resume(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<Value>, Refused> {
    let worker = Worker::find(&shared, &id)?;
    worker.set_draining(false);
    info!(worker = %id, "worker takes work again");
    Ok(Json(json!({ "id": id, "draining": false, "in_flight": worker.in_flight() })))
}

/// Forgets a pod. What is under way there goes on to its end.
async fn remove(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<Value>, Refused> {
    let Worker { pod, local } = Worker::find(&shared, &id)?;
    if local.is_some() {
        let message = "a rank goes only with its pod; drain it instead".to_owned();
        return Err(Refused(ApiError::client(StatusCode::BAD_REQUEST, "worker_invalid", message)));
    }
    let removed = shared.board.remove(pod.id).ok_or_else(not_found)?;
    info!(pod = %removed.id, in_flight = removed.in_flight(), "worker is removed");
    Ok(Json(json!({ "id": id, "in_flight": removed.in_flight() })))
}

/// An operator's mistake.
struct Refused(ApiError);

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// A pod, or one rank of it.
struct Worker {
    pod: Arc<Pod>,
    local: Option<LocalRank>,
}

impl Worker {
    /// By `decode-0` or `decode-0@3`.
    fn find(shared: &Shared, id: &str) -> Result<Self, ApiError> {
        let (pod, local) = match id.split_once('@') {
            Some((pod, local)) => (pod, Some(LocalRank(local.parse().map_err(|_| not_found())?))),
            None => (id, None),
        };
        let (side, index) = pod.split_once('-').ok_or_else(not_found)?;
        let side = [Side::Prefill, Side::Decode].into_iter().find(|known| known.as_str() == side);
        let id = PodId { side: side.ok_or_else(not_found)?, index: index.parse().map_err(|_| not_found())? };
        let pod = shared.board.pods().into_iter().find(|pod| pod.id == id).ok_or_else(not_found)?;
        if local.is_some_and(|local| usize::from(local.0) >= pod.ranks.len()) {
            return Err(not_found());
        }
        Ok(Self { pod, local })
    }

    fn rank(&self) -> Option<&crate::targets::Rank> {
        self.pod.ranks.get(usize::from(self.local?.0))
    }

    fn set_draining(&self, draining: bool) {
        let flag = self.rank().map_or(&self.pod.draining, |rank| &rank.draining);
        flag.store(draining, Ordering::Relaxed);
    }

    fn in_flight(&self) -> u64 {
        self.rank().map_or_else(|| self.pod.in_flight(), |rank| u64::from(rank.in_flight()))
    }
}

fn not_found() -> ApiError {
    ApiError::client(StatusCode::NOT_FOUND, "worker_unknown", "there is no such worker".to_owned())
}

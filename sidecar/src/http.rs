//! The sidecar's HTTP API (design.md §6). serde lives in here and nowhere else; every conversion to and from the core's types is written out.
//!
//! | module | is |
//! |---|---|
//! | [`serve()`], [`api()`] | the server over any listener, and its routes |
//! | `edge` | what happens to every request: request id, span, token, problem documents for unknown paths and methods |
//! | `input` | bodies, queries and paths, with a problem document for each way to be wrong |
//! | `transfers`, `transfer_json` | `/v1/transfers` |
//! | `trace_json` | a timeline as Chrome trace events |
//! | `latency`, `peers` | `/v1/latency`, `/v1/peers` |
//! | `ranks`, `rank_json` | `/v1/ranks` and its event stream |
//! | `handles`, `handles_json` | `/v1/handles` |
//! | `digests`, `digests_json`, `sources` | `/v1/digests`, and asking it of other pods' sidecars |
//! | `log_level` | `/v1/log-level` |
//! | `probe` | `/v1/probe`, what `kvgate doctor --peer` reads |
//! | `openapi` | `/openapi.json`: all of this, described |
//! | `debug` | `/debug`, the page for people |
//! | `quiet` | `/quietz`: whether the engine may end |
//! | `operations` | `/livez`, `/readyz`, `/metrics`, `/version` |

#![expect(unused_qualifications, reason = "utoipa writes the types of parameters with a path")]

mod debug;
mod digests;
mod digests_json;
mod edge;
mod handles;
mod handles_json;
mod input;
mod latency;
mod log_level;
mod openapi;
mod operations;
mod peers;
mod probe;
mod quiet;
mod rank_json;
mod ranks;
mod sources;
mod trace_json;
mod transfer_json;
mod transfers;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::serve::Listener;
use secrets::Tokens;
use serving::{Port, Terms};
use telemetry::log_filter::LogFilter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, error};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::events::RankEvents;
use crate::lifecycle::Lifecycle;
use crate::metrics::{Build, Metrics};
use crate::pod::Pod;
use crate::problem::Problem;

pub use input::MAX_BODY;
pub(crate) use sources::peer_of;
pub use sources::{AllowedDial, HttpSources};

/// Connections beyond the limit that are told so; still further ones wait in the system's backlog.
const REFUSED: u32 = 64;

/// What the handlers share. Clones are handles.
#[derive(Clone, Debug)]
pub struct Api(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    pod: Pod,
    token: Option<Arc<Tokens>>,
    build: Build,
    events: RankEvents,
    metrics: Metrics,
    log_filter: LogFilter,
    probe: probe::Slot,
    bodies: input::Bodies,
    tasks: TaskTracker,
    gate: CancellationToken,
    stop: CancellationToken,
}

impl Api {
    /// An API for one pod, which obeys the process's lifecycle.
    pub fn new(
        pod: Pod,
        token: Option<Arc<Tokens>>,
        build: Build,
        log_filter: LogFilter,
        lifecycle: &Lifecycle,
    ) -> Self {
        let tasks = lifecycle.tasks().clone();
        let events = RankEvents::start(pod.ranks(), &tasks, lifecycle.stop().clone());
        let metrics = Metrics::new(pod.clone(), &build);
        let (gate, stop) = (lifecycle.gate().clone(), lifecycle.stop().clone());
        Self(Arc::new(Parts {
            pod,
            token,
            build,
            events,
            metrics,
            log_filter,
            probe: probe::Slot::default(),
            bodies: input::Bodies::default(),
            tasks,
            gate,
            stop,
        }))
    }

    fn pod(&self) -> &Pod {
        &self.0.pod
    }

    /// Runs work that must not end with the connection to its end; a panic in it is ours, not the client's.
    async fn settled<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T, Problem> {
        self.0.tasks.spawn(work.instrument(Span::current())).await.map_err(|broken| {
            error!(error = %broken, "a request ended without an answer");
            Problem::internal()
        })
    }
}

/// All routes with their descriptions.
fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(transfers::start, transfers::list))
        .routes(routes!(transfers::one, transfers::finish))
        .routes(routes!(transfers::finish_all))
        .routes(routes!(transfers::claim))
        .routes(routes!(transfers::trace))
        .routes(routes!(latency::report))
        .routes(routes!(peers::list))
        .routes(routes!(log_level::show, log_level::change))
        .routes(routes!(probe::open, probe::close))
        .routes(routes!(ranks::list))
        .routes(routes!(ranks::events))
        .routes(routes!(ranks::one))
        .routes(routes!(handles::list, handles::report))
        .routes(routes!(handles::release))
        .routes(routes!(digests::take))
        .routes(routes!(operations::livez))
        .routes(routes!(operations::readyz))
        .routes(routes!(quiet::quietz))
        .routes(routes!(operations::metrics))
        .routes(routes!(operations::version))
        .routes(routes!(openapi::document))
        .merge(debug::routes())
}

/// The whole API: the routes, and what happens to every request.
pub fn api(api: Api) -> Router {
    let (routes, _described) = routes().split_for_parts();
    routes
        .fallback(edge::not_found)
        .method_not_allowed_fallback(edge::method_not_allowed)
        .layer(from_fn_with_state(api.clone(), edge::admit))
        .layer(DefaultBodyLimit::disable())
        .with_state(api)
}

/// What connections of this API are held to.
///
/// A router keeps as many connections as it has transfers that have not landed. Routers close a connection that was idle for a few
/// seconds, far below `idle`: it is not closed while one of them is about to use it.
pub fn terms(max_connections: u32) -> Terms {
    Terms {
        connections: max_connections,
        refused: REFUSED,
        head: Duration::from_secs(15),
        idle: Duration::from_secs(120),
        stall: Duration::from_secs(60),
        head_bytes: 64 << 10,
        headers: 100,
    }
}

/// Serves until the lifecycle's stop; then ends when the open requests have ended.
pub async fn serve<L: Listener>(port: Port<L>, api_of_pod: Api, terms: Terms) {
    let stop = api_of_pod.0.stop.clone();
    serving::serve(port, edge::Front(api(api_of_pod)), terms, stop).await;
}

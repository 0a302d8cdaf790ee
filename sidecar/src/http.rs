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
//! | `log_level` | `/v1/log-level` |
//! | `probe` | `/v1/probe`, what `kvgate doctor --peer` reads |
//! | `operations` | `/livez`, `/readyz`, `/metrics`, `/version` |

mod edge;
mod handles;
mod handles_json;
mod input;
mod latency;
mod log_level;
mod operations;
mod peers;
mod probe;
mod rank_json;
mod ranks;
mod trace_json;
mod transfer_json;
mod transfers;

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::serve::Listener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, error};

use crate::auth::Token;
use crate::events::RankEvents;
use crate::lifecycle::Lifecycle;
use crate::log_filter::LogFilter;
use crate::metrics::{Build, Metrics};
use crate::pod::Pod;
use crate::problem::Problem;

pub use input::MAX_BODY;

/// What the handlers share. Clones are handles.
#[derive(Clone, Debug)]
pub struct Api(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    pod: Pod,
    token: Option<Token>,
    build: Build,
    events: RankEvents,
    metrics: Metrics,
    log_filter: LogFilter,
    probe: probe::Slot,
    tasks: TaskTracker,
    gate: CancellationToken,
    stop: CancellationToken,
}

impl Api {
    /// An API for one pod, which obeys the process's lifecycle.
    pub fn new(pod: Pod, token: Option<Token>, build: Build, log_filter: LogFilter, lifecycle: &Lifecycle) -> Self {
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

/// All routes.
pub fn api(api: Api) -> Router {
    Router::new()
        .route("/v1/transfers", post(transfers::start).get(transfers::list))
        .route("/v1/transfers/{id}", get(transfers::one).delete(transfers::finish))
        .route("/v1/transfers/{id}/claim", post(transfers::claim))
        .route("/v1/transfers/{id}/trace", get(transfers::trace))
        .route("/v1/latency", get(latency::report))
        .route("/v1/peers", get(peers::list))
        .route("/v1/log-level", get(log_level::show).put(log_level::change))
        .route("/v1/probe", post(probe::open).delete(probe::close))
        .route("/v1/ranks", get(ranks::list))
        .route("/v1/ranks/events", get(ranks::events))
        .route("/v1/ranks/{rank}", get(ranks::one))
        .route("/v1/handles", get(handles::list).post(handles::report))
        .route("/v1/handles/{request}", axum::routing::delete(handles::release))
        .route("/livez", get(operations::livez))
        .route("/readyz", get(operations::readyz))
        .route("/metrics", get(operations::metrics))
        .route("/version", get(operations::version))
        .fallback(edge::not_found)
        .method_not_allowed_fallback(edge::method_not_allowed)
        .layer(from_fn_with_state(api.clone(), edge::admit))
        .layer(DefaultBodyLimit::disable())
        .with_state(api)
}

/// Serves until the lifecycle's stop; then ends when the open requests have ended.
///
/// # Errors
/// What the listener says.
pub async fn serve<L>(listener: L, api_of_pod: Api) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let stop = api_of_pod.0.stop.clone();
    axum::serve(listener, api(api_of_pod)).with_graceful_shutdown(stop.cancelled_owned()).await
}

//! The router as a library: given a listener and a way to reach upstreams, the very same router runs over real sockets, in
//! tests and in simulation. Its clock is tokio's.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::serve::Listener;
use serving::Port;
use telemetry::Observed;
use telemetry::log_filter::LogFilter;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::admission::{Admission, Limits};
use crate::choice::Policies;
use crate::config::discovery::Discovery;
use crate::config::{Gate, RouterConfig};
use crate::discover::{self, Hands};
use crate::engine::Engines;
use crate::front::{self, Front};
use crate::guard::{Door, Guard};
use crate::handoff::Handoffs;
use crate::keys::KeysFile;
use crate::ladder::RetryBudget;
use crate::metrics::{Metrics, Sources};
use crate::pod_local::Gateway;
use crate::sidecar::Sidecars;
use crate::targets::{AlreadyThere, Board, PodSpec, Side};
use crate::upstream::Upstream;
use crate::watch::Watchers;

/// After the drain, how long answers that were cut may take to end, and after them the notices to sidecars.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What a router is given besides its configuration.
#[derive(Debug)]
pub struct Parts {
    /// How engines and sidecars are reached.
    pub upstream: Arc<dyn Upstream>,
    /// The commit it was built from, for `/version`.
    pub git_sha: &'static str,
    /// Begins every id that this router makes; must differ between routers and their restarts. `[A-Za-z0-9-]`, short.
    pub id_prefix: String,
    /// Its traces and its log filter.
    pub observed: Observed,
}

/// How a router ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every request had its whole answer.
    Drained,
    /// The drain timeout cut some.
    Cut,
}

/// The ids that the router makes.
#[derive(Debug)]
pub(crate) struct Ids {
    prefix: String,
    next: AtomicU64,
}

impl Ids {
    pub(crate) fn next(&self) -> Arc<str> {
        numbered(&self.prefix, self.next.fetch_add(1, Ordering::Relaxed), |id| Arc::from(id))
    }
}

thread_local! {
    /// Where ids are put together.
    static ID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// `prefix-number`, as whatever is made of it.
pub(crate) fn numbered<T>(prefix: &str, number: u64, made: impl FnOnce(&str) -> T) -> T {
    ID.with_borrow_mut(|id| {
        id.clear();
        // Writing to a string cannot fail.
        write!(id, "{prefix}-{number}").unwrap_or_default();
        made(id)
    })
}

/// What every request shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: RouterConfig,
    pub(crate) git_sha: &'static str,
    pub(crate) log_filter: LogFilter,
    pub(crate) board: Arc<Board>,
    pub(crate) discovery: discover::Sources,
    /// Who says who prefills, in a decode pod.
    pub(crate) gateway: Option<Arc<Gateway>>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) watchers: Watchers,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Metrics,
    pub(crate) engines: Engines,
    pub(crate) sidecars: Sidecars,
    pub(crate) handoffs: Handoffs,
    pub(crate) retries: RetryBudget,
    pub(crate) ids: Ids,
    pub(crate) tasks: TaskTracker,
    /// Ends whatever is still under way after the drain.
    pub(crate) cut: CancellationToken,
}

/// A router that watches its pods and can be served.
#[derive(Debug)]
pub struct Router {
    shared: Arc<Shared>,
    /// Ends all watchers.
    stop: CancellationToken,
}

impl Router {
    /// Starts watching the pods. Must be called within a tokio runtime.
    pub fn start(config: RouterConfig, parts: Parts) -> Self {
        let Parts { upstream, git_sha, id_prefix, observed } = parts;
        let Observed { log_filter, spans } = observed;
        let gated = matches!(config.choice.gate, Gate::Stage);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let board = Arc::new(Board::new(config.failure.breaker, stop.clone()));
        let admission = Arc::new(Admission::new(Limits {
            in_flight: config.limits.max_in_flight,
            queue: config.limits.max_queue,
            queue_deadline: config.deadlines.queue,
            body_bytes: config.limits.max_bodies_bytes,
            rate: config.limits.rate,
        }));
        let sidecars = Sidecars::new(Arc::clone(&upstream), config.targets.sidecar_tokens.clone());
        follow_files(&config, &tasks, &stop);
        let policies = Arc::new(Policies::new(config.choice.policies.clone()));
        let watchers = Watchers {
            policies: Arc::clone(&policies),
            upstream: Arc::clone(&upstream),
            sidecars: sidecars.clone(),
            tasks: tasks.clone(),
        };
        let named = [(Side::Prefill, &config.targets.prefill), (Side::Decode, &config.targets.decode)]
            .map(|(side, urls)| (side, urls.as_slice(), config.targets.ranks(side)));
        let sidecar_scheme = gated.then_some(config.targets.sidecar_scheme);
        let hands = Hands {
            board: Arc::clone(&board),
            watchers: watchers.clone(),
            stop: stop.clone(),
            sidecars: sidecar_scheme,
        };
        // In a decode pod, decode is this pod and nobody is looked for.
        let looked_for = |side| side == Side::Prefill || config.pod_local.is_none();
        let sources: Vec<_> = named.into_iter().filter(|(side, ..)| looked_for(*side)).collect();
        let discovery = discover::Sources::start(&config.discovery, &sources, &hands);
        // With DNS, a name stands for pods and is none itself.
        let by_name = |side| looked_for(side) && matches!(config.discovery, Discovery::Dns { .. });
        for (side, urls, ranks) in named.into_iter().filter(|(side, ..)| !by_name(*side)) {
            for url in urls {
                let (engine, sidecar) = (url.engine.clone(), gated.then(|| url.sidecar.clone()));
                match board.add(PodSpec { side, engine, sidecar, ranks }) {
                    Ok(pod) => watchers.start(pod),
                    // The configuration's check lets no engine be named twice.
                    Err(AlreadyThere(pod)) => warn!(%pod, "an engine is named twice"),
                }
            }
        }
        let (port, ranks) = (config.listen.port, config.targets.prefill_ranks);
        let gateway = config.pod_local.clone().map(|pod_local| Gateway::new(pod_local, port, ranks, hands));
        let shared = Shared {
            metrics: Metrics::new(Sources {
                admission: Arc::clone(&admission),
                board: Arc::clone(&board),
                git_sha,
                peer_names: config.observe.peer_metrics,
                records: config.observe.request_records,
                spans,
                prefiller_headers: gateway.as_ref().map(|gateway| gateway.headers()),
                collectors: vec![Box::new(discovery.clone())],
            }),
            board,
            gateway,
            discovery,
            policies,
            watchers,
            admission,
            engines: Engines::new(upstream, config.deadlines.prefill, config.deadlines.decode),
            retries: RetryBudget::new(config.failure.retry_budget, config.failure.retry_floor, Instant::now()),
            handoffs: Handoffs::new(sidecars.clone(), tasks.clone(), config.observe.report_handles_after),
            sidecars,
            ids: Ids { prefix: id_prefix, next: AtomicU64::new(1) },
            tasks,
            cut: CancellationToken::new(),
            git_sha,
            log_filter,
            config,
        };
        Self { shared: Arc::new(shared), stop }
    }

    /// Serves operators, and them alone, on another listener until the end of [`Self::serve`].
    pub fn serve_operators<L: Listener>(&self, listener: L) {
        self.shared.tasks.spawn(open(&self.shared, listener, Door::Operators, self.stop.clone()));
    }

    /// Serves until `stop`, then drains: no new requests, `/readyz` fails, requests in flight may end within the drain timeout.
    pub async fn serve<L: Listener>(self, listener: L, stop: CancellationToken) -> Ended {
        let (shared, close) = (self.shared, CancellationToken::new());
        let mut server = std::pin::pin!(open(&shared, listener, Door::Clients, close.clone()));
        let ended = {
            let drained = drain(&shared, &stop);
            tokio::select! {
                () = &mut server => Ended::Drained,
                ended = drained => ended,
            }
        };
        close.cancel();
        // A connection that does not close in time is left to the end of the process.
        if timeout(LAST_WORDS, server).await.is_err() {
            debug!("connections are left open");
        }
        self.stop.cancel();
        shared.tasks.close();
        if timeout(LAST_WORDS, shared.tasks.wait()).await.is_err() {
            warn!(tasks = shared.tasks.len(), "notices to sidecars are given up; claims and leases will lapse");
        }
        ended
    }
}

/// Keys, tokens and certificates, as their files have them from now on.
fn follow_files(config: &RouterConfig, tasks: &TaskTracker, stop: &CancellationToken) {
    let (limits, targets, listen) = (&config.limits, &config.targets, &config.listen);
    if let (Some(keys), Some(path)) = (&limits.keys, &limits.api_keys_file) {
        let file = Arc::new(KeysFile { path: path.clone(), keys: Arc::clone(keys) });
        tasks.spawn(secrets::follow(file, stop.clone()));
    }
    for tokens in [&targets.engine_tokens, &targets.sidecar_tokens, &listen.admin_tokens].into_iter().flatten() {
        tasks.spawn(secrets::follow(Arc::clone(tokens), stop.clone()));
    }
    if let Some(tls) = &listen.tls {
        tasks.spawn(secrets::follow(Arc::clone(tls), stop.clone()));
    }
    if let Some(tls) = &targets.upstream {
        tasks.spawn(secrets::follow(Arc::clone(tls), stop.clone()));
    }
}

/// One listener, from its opening to its close.
fn open<L: Listener>(
    shared: &Arc<Shared>,
    listener: L,
    door: Door,
    close: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let guard = Arc::new(Guard::new(&shared.config, door));
    let front = Front { guard, shared: Arc::clone(shared), routes: crate::http::routes(Arc::clone(shared), door) };
    let port = Port { listener, tls: shared.config.listen.tls.clone() };
    serving::serve(port, front, front::terms(&shared.config), close)
}

async fn drain(shared: &Shared, stop: &CancellationToken) -> Ended {
    stop.cancelled().await;
    shared.admission.drain();
    let inside = shared.admission.inside();
    info!(inside, timeout_ms = millis(shared.config.listen.drain_timeout), "draining");
    if timeout(shared.config.listen.drain_timeout, shared.admission.empty()).await.is_ok() {
        return Ended::Drained;
    }
    warn!(inside = shared.admission.inside(), "drain timeout is over; answers under way are cut");
    shared.cut.cancel();
    if timeout(LAST_WORDS, shared.admission.empty()).await.is_err() {
        debug!("clients are slow to take their ends");
    }
    Ended::Cut
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

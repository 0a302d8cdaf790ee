//! One watcher per pod: it learns which ranks can take work, how much they have, and publishes that on the pod.
//!
//! With the stage gate the sidecar's event stream says it, and polling whenever the stream is silent; with the direct gate the
//! engine's health check. A pod whose sidecar has died is not ready as soon as its stream has ended and does not open again, and
//! within a second when it dies without a word.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request, Uri};
use http_body_util::BodyExt;
use kv::ids::{DpRank, LocalRank};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::choice::Policies;
use crate::sidecar::{RankJson, SidecarError, Sidecars};
use crate::sse::Splitter;
use crate::targets::{Pod, RankView};
use crate::trail::with_causes;
use crate::upstream::{Payload, Upstream, at, fetch};

/// Wait before the first reconnection that follows a failed one, or a stream that said nothing; doubled up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// Longest wait before a reconnection.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// While a stream is opened again, what was last said stands for this long.
const STANDS: Duration = Duration::from_millis(400);
/// A stream that is silent this long is asked about with a poll: sidecars send a comment more often.
const QUIET: Duration = Duration::from_millis(500);
/// A sidecar that does not answer a poll in this time has gone.
const POLL_DEADLINE: Duration = Duration::from_millis(400);
/// A deadline that is noticed so much too late says that this process gets too little of its processors.
const BUSY: Duration = Duration::from_millis(50);
/// Polls that may be late for that reason.
const MAX_POLLS: u32 = 10;
/// A new stream must have named every rank after this time.
const NAMED_WITHIN: Duration = Duration::from_millis(500);
/// Between two health checks.
const HEALTH_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for a health check.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

/// What a pod's ranks are called while its sidecar is silent.
const NOT_FOLLOWED: &str = "not followed (its sidecar does not answer)";

/// Starts watchers.
#[derive(Clone, Debug)]
pub(crate) struct Watchers {
    pub(crate) upstream: Arc<dyn Upstream>,
    pub(crate) sidecars: Sidecars,
    pub(crate) policies: Arc<Policies>,
    pub(crate) tasks: TaskTracker,
}

impl Watchers {
    /// Watches a pod until its own `stop`.
    pub(crate) fn start(&self, pod: Arc<Pod>) {
        self.policies.follow(&pod, &self.tasks);
        match pod.sidecar.clone() {
            Some(sidecar) => self.tasks.spawn(follow_sidecar(self.sidecars.clone(), pod, sidecar)),
            None => self.tasks.spawn(poll_engine(Arc::clone(&self.upstream), pod)),
        };
    }
}

async fn follow_sidecar(sidecars: Sidecars, pod: Arc<Pod>, sidecar: Uri) {
    let stop = pod.stop.clone();
    let mut backoff = MIN_BACKOFF;
    // Why it does not answer, in words: said when it changes, for what is wrong at first may be the least of it.
    let mut lost: Option<String> = None;
    loop {
        let connected = tokio::select! {
            () = stop.cancelled() => return,
            connected = connect(&sidecars, &pod, &sidecar) => connected,
        };
        match connected {
            Ok(body) => {
                if lost.take().is_some() {
                    info!(pod = %pod.id, "sidecar is back");
                }
                let mut stream = Stream { sidecars: &sidecars, pod: &pod, sidecar: &sidecar, named: Vec::new() };
                let ended = tokio::select! {
                    () = stop.cancelled() => return,
                    ended = stream.read(body) => ended,
                };
                debug!(pod = %pod.id, why = ended.as_str(), "sidecar's event stream ended");
                if ended == End::Lost {
                    pod.lose(NOT_FOLLOWED, &format!("the sidecar {sidecar} does not answer any more"));
                } else if !stream.named.is_empty() {
                    // A sidecar that still answers sends all states again at once, so what it said last stands until then.
                    backoff = MIN_BACKOFF;
                    continue;
                }
            }
            Err(error) => {
                let why = with_causes(&error);
                if lost.as_ref() != Some(&why) {
                    warn!(pod = %pod.id, sidecar = %sidecar, error = &error as &dyn std::error::Error, "sidecar does not answer");
                    lost = Some(why);
                }
                let (state, reason) = describe(&error, &sidecar);
                pod.lose(state, &reason);
            }
        }
        tokio::select! { () = stop.cancelled() => return, () = sleep(backoff) => {} }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

async fn connect(sidecars: &Sidecars, pod: &Pod, sidecar: &Uri) -> Result<Body, SidecarError> {
    let mut connecting = std::pin::pin!(sidecars.rank_events(sidecar));
    tokio::select! {
        connected = &mut connecting => return connected,
        () = sleep(STANDS) => pod.lose(NOT_FOLLOWED, &format!("the sidecar {sidecar} does not answer")),
    }
    connecting.await
}

fn describe(error: &SidecarError, sidecar: &Uri) -> (&'static str, String) {
    match error {
        SidecarError::Answer { status, .. } => (
            "not followed (its sidecar refuses)",
            format!("the sidecar {sidecar} answers its event stream with {status}"),
        ),
        SidecarError::Problem { .. }
        | SidecarError::Upstream(_)
        | SidecarError::Request(_)
        | SidecarError::Stale { .. }
        | SidecarError::Abandoned => (NOT_FOLLOWED, format!("the sidecar {sidecar} does not answer")),
    }
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Broken,
    TooLong,
    /// It was silent, and the sidecar does not answer either.
    Lost,
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken => "broken",
            Self::TooLong => "event too long",
            Self::Lost => "silent",
        }
    }
}

/// One event stream of a pod.
struct Stream<'a> {
    sidecars: &'a Sidecars,
    pod: &'a Pod,
    sidecar: &'a Uri,
    /// Ranks of which it has spoken.
    named: Vec<LocalRank>,
}

impl Stream<'_> {
    /// Publishes every event until the stream ends.
    async fn read(&mut self, mut body: Body) -> End {
        let mut splitter = Splitter::default();
        let (opened, mut heard, mut all_named) = (Instant::now(), Instant::now(), false);
        loop {
            let frame = tokio::select! {
                // What has come already counts before the time does.
                biased;
                frame = body.frame() => frame,
                () = sleep_until(opened + NAMED_WITHIN), if !all_named => {
                    all_named = true;
                    self.lose_unnamed();
                    continue;
                }
                () = sleep_until(heard + QUIET) => {
                    // A router that is itself too busy to keep time cannot blame others for being late.
                    if heard.elapsed() < QUIET + BUSY {
                        tokio::select! {
                            biased;
                            frame = body.frame() => frame,
                            alive = poll(self.sidecars, self.sidecar) => match alive {
                                Some(ranks) => {
                                    ranks.into_iter().for_each(|rank| self.take_in(rank));
                                    heard = Instant::now();
                                    continue;
                                }
                                None => return End::Lost,
                            }
                        }
                    } else {
                        heard = Instant::now();
                        continue;
                    }
                }
            };
            heard = Instant::now();
            let frame = match frame {
                None => return End::Closed,
                Some(Err(_)) => return End::Broken,
                Some(Ok(frame)) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            if splitter.push(&data).is_err() {
                return End::TooLong;
            }
            while let Some(event) = splitter.next_event() {
                if event.name == "rank" {
                    match serde_json::from_str(&event.data) {
                        Ok(rank) => self.take_in(rank),
                        Err(error) => {
                            warn!(error = &error as &dyn std::error::Error, "rank event is not understood");
                        }
                    }
                }
            }
        }
    }

    fn take_in(&mut self, rank: RankJson) {
        let local = LocalRank(rank.local_rank);
        if !self.named.contains(&local) {
            self.named.push(local);
        }
        let count = |reported: u64| u32::try_from(reported).unwrap_or(u32::MAX);
        let view = RankView {
            rank: DpRank(rank.dp_rank),
            ready: rank.state == "ready" && !rank.draining,
            state: if rank.draining { "draining".to_owned() } else { word(&rank.state) },
            reasons: rank.reasons,
            running: count(rank.load.running),
            waiting: count(rank.load.waiting),
            kv_usage: rank.load.kv_usage(),
            staging_used: rank.staging.used(),
            staging_blocks: rank.staging.blocks(),
        };
        self.pod.show(local, view);
    }

    /// What a rank was before this stream counts no more when the stream does not speak of it.
    fn lose_unnamed(&self) {
        for (local, rank) in (0..).map(LocalRank).zip(&self.pod.ranks) {
            if !self.named.contains(&local) {
                rank.lose("unknown", &format!("the sidecar {} does not speak of it", self.sidecar));
            }
        }
    }
}

/// What a sidecar says of its ranks; nothing where it does not have the list, and `None` when it does not answer.
async fn poll(sidecars: &Sidecars, sidecar: &Uri) -> Option<Vec<RankJson>> {
    for _ in 0..MAX_POLLS {
        let asked = Instant::now();
        match sidecars.ranks(sidecar, POLL_DEADLINE).await {
            Ok(ranks) => return Some(ranks),
            Err(SidecarError::Problem { .. } | SidecarError::Answer { .. }) => return Some(Vec::new()),
            Err(SidecarError::Upstream(error)) if error.is_late() && asked.elapsed() > POLL_DEADLINE + BUSY => {}
            Err(
                SidecarError::Upstream(_)
                | SidecarError::Request(_)
                | SidecarError::Stale { .. }
                | SidecarError::Abandoned,
            ) => return None,
        }
    }
    None
}

/// A state's word may go to clients: nothing but a short word passes.
fn word(state: &str) -> String {
    state.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(32).collect()
}

/// Asks an engine for its health: one answer stands for all its ranks.
async fn poll_engine(upstream: Arc<dyn Upstream>, pod: Arc<Pod>) {
    let stop = pod.stop.clone();
    loop {
        let healthy = tokio::select! {
            () = stop.cancelled() => return,
            healthy = is_healthy(&*upstream, &pod.engine) => healthy,
        };
        if healthy {
            for local in (0..).map(LocalRank).take(pod.ranks.len()) {
                let view = RankView::unknown(DpRank(local.0), "ready", "");
                pod.show(local, RankView { ready: true, reasons: Vec::new(), ..view });
            }
        } else {
            pod.lose("unhealthy", &format!("the engine {} fails its health check", pod.engine));
        }
        tokio::select! { () = stop.cancelled() => return, () = sleep(HEALTH_EVERY) => {} }
    }
}

async fn is_healthy(upstream: &dyn Upstream, engine: &Uri) -> bool {
    let request =
        at(engine, "/health").and_then(|uri| Request::builder().method(Method::GET).uri(uri).body(Payload::default()));
    let Ok(request) = request else { return false };
    let answer = fetch(upstream, request, HEALTH_DEADLINE, 64 * 1024).await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

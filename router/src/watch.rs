//! One watcher per pod: it learns which ranks can take work and publishes that to the [`Board`](crate::targets::Board).
//!
//! With the stage gate the sidecar's event stream says it, with the direct gate the engine's health check.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Uri};
use http_body_util::BodyExt;
use kv::ids::{DpRank, LocalRank};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::sidecar::{RankJson, SidecarError, Sidecars};
use crate::sse::Splitter;
use crate::targets::{Pod, PodView, RankView, unknown};
use crate::upstream::{Payload, Upstream, at, fetch};

/// Wait before the first reconnection; doubled up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// Longest wait before a reconnection.
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// A stream that is silent this long is dead: sidecars send a comment every 15 s.
const MAX_SILENCE: Duration = Duration::from_secs(45);
/// Between two health checks.
const HEALTH_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for a health check.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

/// Follows a sidecar's rank events until `stop`.
pub(crate) async fn follow_sidecar(
    sidecars: Sidecars,
    pod: Arc<Pod>,
    sidecar: Uri,
    view: watch::Sender<PodView>,
    stop: CancellationToken,
) {
    let ranks = u16::try_from(view.borrow().len()).unwrap_or(u16::MAX);
    let mut backoff = MIN_BACKOFF;
    let mut lost = false;
    loop {
        let connected = tokio::select! {
            () = stop.cancelled() => return,
            connected = sidecars.rank_events(&sidecar) => connected,
        };
        match connected {
            Ok(body) => {
                if lost {
                    info!(pod = %pod.id, "sidecar is back");
                }
                lost = false;
                let ended = tokio::select! {
                    () = stop.cancelled() => return,
                    ended = read_events(body, &view) => ended,
                };
                debug!(pod = %pod.id, why = ended, "sidecar's event stream ended");
                // A sidecar that still answers sends all states again at once, so what it said last stands until then.
                backoff = MIN_BACKOFF;
            }
            Err(error) => {
                if !lost {
                    warn!(pod = %pod.id, sidecar = %sidecar, error = &error as &dyn std::error::Error, "sidecar does not answer");
                }
                lost = true;
                let (state, reason) = describe(&error, &sidecar);
                view.send_replace(unknown(ranks, state, &reason));
                tokio::select! { () = stop.cancelled() => return, () = sleep(backoff) => {} }
                backoff = (backoff * 2).min(MAX_BACKOFF);
                continue;
            }
        }
        tokio::select! { () = stop.cancelled() => return, () = sleep(MIN_BACKOFF) => {} }
    }
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
        | SidecarError::Abandoned => {
            ("not followed (its sidecar does not answer)", format!("the sidecar {sidecar} does not answer"))
        }
    }
}

/// Publishes every event until the stream ends; returns why it did.
async fn read_events(mut body: axum::body::Body, view: &watch::Sender<PodView>) -> &'static str {
    let mut splitter = Splitter::default();
    loop {
        let frame = match timeout(MAX_SILENCE, body.frame()).await {
            Err(_) => return "silent for too long",
            Ok(None) => return "closed",
            Ok(Some(Err(_))) => return "broken",
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if splitter.push(&data).is_err() {
            return "event too long";
        }
        while let Some(event) = splitter.next_event() {
            if event.name == "rank" {
                take_in(&event.data, view);
            }
        }
    }
}

fn take_in(data: &str, view: &watch::Sender<PodView>) {
    let rank: RankJson = match serde_json::from_str(data) {
        Ok(rank) => rank,
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "rank event is not understood");
            return;
        }
    };
    view.send_if_modified(|ranks| {
        let mut changed = Vec::clone(ranks);
        // A rank beyond the configured size gets no requests; `/readyz` shows the size that is configured.
        let Some(slot) = changed.get_mut(usize::from(LocalRank(rank.local_rank).0)) else { return false };
        let new = RankView {
            rank: DpRank(rank.dp_rank),
            ready: rank.state == "ready" && !rank.draining,
            state: if rank.draining { "draining".to_owned() } else { word(&rank.state) },
            reasons: rank.reasons,
            running: rank.load.running,
            waiting: rank.load.waiting,
        };
        if *slot == new {
            return false;
        }
        *slot = new;
        *ranks = Arc::new(changed);
        true
    });
}

/// A state's word may go to clients: nothing but a short word passes.
fn word(state: &str) -> String {
    state.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(32).collect()
}

/// Asks an engine for its health until `stop`: one answer stands for all its ranks.
pub(crate) async fn poll_engine(
    upstream: Arc<dyn Upstream>,
    pod: Arc<Pod>,
    view: watch::Sender<PodView>,
    stop: CancellationToken,
) {
    let ranks = u16::try_from(view.borrow().len()).unwrap_or(u16::MAX);
    loop {
        let healthy = tokio::select! {
            () = stop.cancelled() => return,
            healthy = is_healthy(&*upstream, &pod.engine) => healthy,
        };
        let state = if healthy { "ready" } else { "unhealthy" };
        let mut fresh =
            Vec::clone(&unknown(ranks, state, &format!("the engine {} fails its health check", pod.engine)));
        if healthy {
            fresh.iter_mut().for_each(|rank| (rank.ready, rank.reasons) = (true, Vec::new()));
        }
        view.send_replace(Arc::new(fresh));
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

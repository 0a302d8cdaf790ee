//! Keeps a prefill engine's lease while a request waits or loads here: `HB:<id>` every sixth of the lease, the first at once.
//!
//! Source: `docs/vllm-nixl-protocol.md` §3.4. As in vLLM the first beat also starts the handshake, long before it is this
//! request's turn.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::EngineRequestId;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use vllm_wire::notif;

use crate::peers::{Peers, Remote};
use crate::stats::RankStats;

/// A running heartbeat; dropping it ends it.
#[derive(Debug)]
pub struct Heartbeat {
    _guard: DropGuard,
}

impl Heartbeat {
    /// Starts to beat for one request.
    pub fn start(
        tasks: &TaskTracker,
        peers: Arc<Peers>,
        stats: Arc<RankStats>,
        remote: Remote,
        request: EngineRequestId,
        lease: Duration,
    ) -> Self {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        tasks.spawn(async move {
            let beats = beat(&peers, &stats, &remote, &request, lease);
            tokio::select! {
                () = stop.cancelled() => {}
                () = beats => {}
            }
        });
        Self { _guard: guard }
    }
}

async fn beat(peers: &Peers, stats: &RankStats, remote: &Remote, request: &EngineRequestId, lease: Duration) {
    let message = notif::heartbeat([request]);
    let mut period = tokio::time::interval((lease / 6).max(Duration::from_millis(1)));
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let told = match peers.get(remote).await {
            Ok(peer) => peers.notify(&peer, &message).await,
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::warn!(request_id = %request, engine_id = %remote.engine, %error, "a heartbeat could not be sent");
            stats.failed_notifications.add(1);
        }
    }
}

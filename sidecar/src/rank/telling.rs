//! What P's workers are told: heartbeats, each sent once, and the word that blocks are free, sent until it is out.
//!
//! Where it certainly was not sent it is sent again, over a connection that has been made anew, for as long as P's lease lasts: after that P
//! frees the blocks by itself. What may have left is not sent twice (invariant N).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv::ids::{TpRank, TransferId};
use kv::transfer::{Event as E, State};
use nixl::{AgentName, Fabric, FabricError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vllm_wire::notif;

use super::jobs::{self, Event};
use super::{Rank, Wake};
use crate::model::counters::add;

/// How long handing over one notification may take.
const TELL_WITHIN: Duration = Duration::from_secs(5);
/// How long making a connection anew may take.
const RELOAD_WITHIN: Duration = Duration::from_secs(2);
/// The first pause before a notification is sent again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A worker of P, with the agent of ours that talks to it.
pub(crate) type Line = (Arc<dyn Fabric>, AgentName);

/// P's workers that have not been told that a transfer has landed.
#[derive(Debug)]
pub(super) struct Untold {
    shards: Vec<TpRank>,
    /// Before the next try.
    pause: Duration,
    /// Workers that may have been told, or cannot be any more.
    lost: u64,
}

/// How one round of telling went.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Workers that were told.
    pub sent: u64,
    /// Workers that may have been told, or cannot be any more.
    pub lost: u64,
    /// Workers that certainly were not.
    pub unsent: Vec<TpRank>,
    /// The connection is to blame.
    pub blames_peer: bool,
}

impl Rank {
    /// A transfer has landed: P's workers may free their blocks.
    pub(super) fn tell_producer(&mut self, transfer: &TransferId) {
        let shards = (0..self.shared.config.tp_size).map(TpRank).collect();
        if let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) {
            active.untold = Some(Untold { shards, pause: FIRST_PAUSE, lost: 0 });
        }
        self.tell(transfer);
    }

    /// Tells those workers that have not been told.
    pub(super) fn tell(&self, transfer: &TransferId) {
        let Some(active) = self.stage.as_ref().and_then(|stage| stage.active.get(transfer)) else { return };
        let (Some(peer), Some(untold)) = (&active.peer, &active.untold) else { return };
        let lines = (0..).map(TpRank).zip(peer.lines()).filter(|(shard, _)| untold.shards.contains(shard)).collect();
        let message = notif::done(&active.params.remote_request_id, 1);
        let (transfer, events) = (transfer.clone(), self.events.clone());
        self.shared.tasks.spawn(async move {
            let told = tell(lines, &message).await;
            jobs::report(&events, Event::Told { transfer, told }).await;
        });
    }

    pub(super) fn on_told(&mut self, transfer: &TransferId, told: Told) {
        add(&self.shared.counters.told, told.sent);
        let stopping = self.shared.stop.is_cancelled();
        let active = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer));
        let left = count(told.unsent.len());
        let Some((active, mut untold)) = active.and_then(|active| active.untold.take().map(|untold| (active, untold)))
        else {
            return add(&self.shared.counters.tells_failed, told.lost.saturating_add(left));
        };
        untold.lost = untold.lost.saturating_add(told.lost);
        untold.shards = told.unsent;
        let again = Instant::now() + untold.pause;
        if untold.shards.is_empty() || again >= active.lease_over || stopping {
            let failed = untold.lost.saturating_add(left);
            add(&self.shared.counters.tells_failed, failed);
            return self.drive(transfer, E::Told { sent: failed == 0 });
        }
        untold.pause = untold.pause.saturating_mul(2).min(LONGEST_PAUSE);
        active.untold = Some(untold);
        if told.blames_peer {
            self.forget_peer_of(transfer);
        }
        // Then it looks for the peer again, which is asked anew if its connection is to blame.
        self.timers.set(&Wake::Tell(transfer.clone()), Some(again));
    }

    /// There is no connection to P's workers now.
    pub(super) fn not_told(&mut self, transfer: &TransferId) {
        let active = self.stage.as_ref().and_then(|stage| stage.active.get(transfer));
        let Some(untold) = active.and_then(|active| active.untold.as_ref()) else { return };
        let told = Told { unsent: untold.shards.clone(), ..Told::default() };
        self.on_told(transfer, told);
    }

    /// Sends one heartbeat to P's shards if it is still wanted, and plans the next.
    pub(super) fn beat(&mut self, transfer: &TransferId) {
        if self.shared.config.faults.no_heartbeat {
            return;
        }
        let Some(stage) = &self.stage else { return };
        let Some(active) = stage.active.get(transfer) else { return };
        let (Some(peer), Some(lease)) = (&active.peer, active.state.wants_beats()) else { return };
        let now = Instant::now();
        let next = now + lease.beat_every();
        let lines = (0..).map(TpRank).zip(peer.lines()).collect();
        let message = notif::heartbeat([&active.params.remote_request_id]);
        let (id, events) = (transfer.clone(), self.events.clone());
        self.shared.tasks.spawn(async move {
            let told = tell(lines, &message).await;
            jobs::report(&events, Event::Beaten { transfer: id, sent_at: now, told }).await;
        });
        self.timers.set(&Wake::Beat(transfer.clone()), Some(next));
    }

    /// The time for a heartbeat has come. Who has not begun to read looks for the peer first: its connection may have been lost meanwhile.
    pub(super) fn beat_due(&mut self, transfer: &TransferId) {
        let active = self.stage.as_ref().and_then(|stage| stage.active.get(transfer));
        if active.is_some_and(|active| matches!(active.state, State::Queued(_) | State::AwaitingPeer(_))) {
            self.connect(transfer);
        } else {
            self.beat(transfer);
        }
    }

    pub(super) fn on_beaten(&mut self, transfer: &TransferId, sent_at: Instant, told: &Told) {
        if told.lost == 0 && told.unsent.is_empty() {
            add(&self.shared.counters.heartbeats, told.sent);
            self.drive(transfer, E::BeatSent(sent_at.into_std()));
            let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
            if let Some(lease) = active.state.wants_beats() {
                active.lease_over = Instant::from_std(lease.over_at());
            }
            return;
        }
        add(&self.shared.counters.tells_failed, 1);
        if told.blames_peer {
            self.forget_peer_of(transfer);
        }
    }
}

/// Who of a pod's own engine is still to be told that blocks are free.
#[derive(Debug)]
pub(crate) struct Telling {
    /// Workers that have not been told, each with the blob that it is loaded from.
    pub to: Vec<(Line, Bytes)>,
    /// What they are told.
    pub message: Bytes,
    /// When the engine frees the blocks by itself.
    pub until: Instant,
    /// Cancelled: the process ends.
    pub stop: CancellationToken,
    /// Workers that may have been told, or cannot be any more.
    pub lost: u64,
}

impl Telling {
    /// Tells everyone who has not been told.
    pub(crate) async fn once(&mut self) {
        let lines = (0..).map(TpRank).zip(self.to.iter().map(|(line, _)| line.clone())).collect();
        let told = tell(lines, &self.message).await;
        self.lost = self.lost.saturating_add(told.lost);
        let mut shard = 0;
        self.to.retain(|_| {
            let unsent = told.unsent.contains(&TpRank(shard));
            shard = shard.saturating_add(1);
            unsent
        });
    }

    /// Tells the rest, over connections that are made anew, for as long as it is of use. Returns how many could not be told.
    pub(crate) async fn rest(mut self) -> u64 {
        let mut pause = FIRST_PAUSE;
        while !self.to.is_empty() && Instant::now() + pause < self.until {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => break,
            }
            for ((fabric, agent), blob) in &self.to {
                // Whether that worked is seen when it is told.
                drop(tokio::time::timeout(RELOAD_WITHIN, fabric.forget_peer(agent.clone())).await);
                drop(tokio::time::timeout(RELOAD_WITHIN, fabric.load_peer(blob.clone())).await);
            }
            self.once().await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
        self.lost.saturating_add(count(self.to.len()))
    }
}

/// Sends one message to workers.
async fn tell(to: Vec<(TpRank, Line)>, message: &Bytes) -> Told {
    let sending = to.into_iter().map(|(shard, (fabric, agent))| {
        let sending = fabric.notify(agent.clone(), message.clone());
        (shard, agent, sending)
    });
    // All of them are handed over before one is waited for.
    let sending: Vec<_> = sending.collect();
    let until = Instant::now() + TELL_WITHIN;
    let mut told = Told::default();
    for (shard, agent, sending) in sending {
        let Err(error) = tokio::time::timeout_at(until, sending).await.unwrap_or(Err(FabricError::Lost)) else {
            told.sent = told.sent.saturating_add(1);
            continue;
        };
        tracing::warn!(%error, %agent, "notification not sent");
        match error {
            FabricError::Busy => told.unsent.push(shard),
            // The connection has been lost, or metadata is just being loaded anew.
            FabricError::UnknownPeer(_) | FabricError::Nixl(_) => {
                told.unsent.push(shard);
                told.blames_peer = true;
            }
            FabricError::Closed
            | FabricError::Lost
            | FabricError::Abandoned
            | FabricError::Metadata
            | FabricError::Descs(_)
            | FabricError::Memory(_)
            | FabricError::Transfer(_) => told.lost = told.lost.saturating_add(1),
        }
    }
    told
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

//! Driving transfers: what happens goes to their machines, what those ask for is done.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kv::ids::{EngineId, EngineRequestId, TpRank, TransferId};
use kv::layout::MemoryKind;
use kv::transfer::{Event as E, Failure, State};
use tokio::time::Instant;

use super::jobs::{ReadEnd, ReadError};
use super::{Rank, Wake};
use crate::model::{ShardRead, StagingKind, TransferError, TransferFailure, TransferPhase, TransferSnapshot};

impl Rank {
    pub(super) fn on_posted(&mut self, transfer: &TransferId, _shard: TpRank, took: Duration) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        active.marks.post = active.marks.post.max(took);
        let (post, now) = (active.marks.post, Instant::now());
        // What is not wanted any more is shown as it was when it was given up.
        if matches!(active.state, State::InFlight { .. }) {
            self.records.change(transfer, |shown| {
                shown.stages.post = Some(post);
                shown.starts.wire.get_or_insert(now.saturating_duration_since(shown.started));
                shown.state = TransferPhase::InFlight;
            });
        }
    }

    pub(super) fn on_read_ended(&mut self, transfer: &TransferId, shard: TpRank, answer: Result<ReadEnd, ReadError>) {
        if self.stage.as_ref().is_none_or(|stage| !stage.active.contains_key(transfer)) {
            return;
        }
        match answer {
            Ok(end) => {
                let bytes = end.done.bytes;
                self.note_read(transfer, shard, end);
                self.drive(transfer, E::ShardLanded { shard, bytes });
            }
            Err(error) => {
                let blames_peer = blames_peer(&error);
                let quiet = match &error {
                    ReadError::GivenUp | ReadError::Plan(_) | ReadError::Descs(_) => true,
                    ReadError::Fabric(error) => error.memory_is_quiet(),
                };
                let (code, source) = match error {
                    ReadError::GivenUp => (0, None),
                    ReadError::Plan(_) | ReadError::Descs(_) => (0, Some(self.plan_error(transfer, error))),
                    ReadError::Fabric(error) => (nixl_code(&error), Some(self.read_error(transfer, error))),
                };
                if let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer))
                    && active.error.is_none()
                {
                    active.error = source;
                }
                if blames_peer {
                    self.forget_peer_of(transfer);
                }
                self.drive(transfer, E::ShardFailed { shard, code, quiet });
            }
        }
    }

    /// Takes down how one shard's read went.
    fn note_read(&mut self, transfer: &TransferId, shard: TpRank, end: ReadEnd) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        let marks = &mut active.marks;
        let begun = marks.reads_due.unwrap_or(marks.started) + end.waited;
        let slowest = end.done.wire >= marks.wire;
        marks.waited = marks.waited.max(end.waited);
        marks.wire = marks.wire.max(end.done.wire);
        // What passes until its end is noticed belongs to the stage after it.
        marks.arrived = marks.arrived.max(Some(end.ended.min(begun + end.done.wire)));
        self.records.change(transfer, |shown| {
            let start = shown.offset(begun);
            if slowest {
                shown.starts.wire = Some(start);
            }
            shown.facts_mut().shards.push(ShardRead {
                shard,
                agent: end.agent,
                descriptors: u64::try_from(end.done.descs).unwrap_or(u64::MAX),
                pieces: end.pieces,
                bytes: end.done.bytes,
                planned: end.planned,
                start,
                post_call: end.done.post,
                wire: end.done.wire,
            });
        });
    }

    fn plan_error(&self, transfer: &TransferId, error: ReadError) -> TransferError {
        let (peer, blocks) = self.source_of(transfer);
        TransferError::PlanFailed { peer, blocks, source: Arc::new(error) }
    }

    fn read_error(&self, transfer: &TransferId, error: nixl::FabricError) -> TransferError {
        if matches!(error, nixl::FabricError::Busy) {
            return TransferError::Busy { rank: self.own.dp_rank };
        }
        let (peer, blocks) = self.source_of(transfer);
        let gpu = self.reads_gpu_memory(transfer);
        TransferError::ReadFailed { peer, blocks, gpu, source: Arc::new(error) }
    }

    /// Whether P's blocks or our slots are a GPU's memory.
    fn reads_gpu_memory(&self, transfer: &TransferId) -> bool {
        let active = self.stage.as_ref().and_then(|stage| stage.active.get(transfer));
        let peer = active.and_then(|active| active.peer.as_ref());
        self.shared.config.staging == StagingKind::Vram
            || peer.is_some_and(|peer| peer.shards.iter().any(|shard| shard.layout.memory == MemoryKind::Vram))
    }

    pub(super) fn source_of(&self, transfer: &TransferId) -> (EngineId, u32) {
        let shown = self.records.get(transfer);
        shown.map_or_else(|| (EngineId::new(""), 0), |shown| (shown.source_engine.clone(), shown.blocks))
    }

    /// Feeds one event to a transfer's machine and does what it asks for, also what follows at once from that.
    pub(super) fn drive(&mut self, transfer: &TransferId, event: E) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = Instant::now();
            let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
            let step = active.state.clone().step(event, now.into_std());
            active.state = step.state;
            for effect in step.effects {
                events.extend(self.perform(transfer, *effect));
            }
        }
        self.after_step(transfer);
    }

    fn after_step(&mut self, transfer: &TransferId) {
        let Some(stage) = &mut self.stage else { return };
        let Some(active) = stage.active.get_mut(transfer) else { return };
        let phase = phase(&active.state);
        let mut tick = active.state.next_tick().map(Instant::from_std);
        if phase == TransferPhase::Quiescing {
            let since = *active.marks.quiescing.get_or_insert_with(Instant::now);
            tick = Some(since + super::recycle::QUIESCE_WITHIN).filter(|at| *at > Instant::now());
        }
        let terminal = active.state.is_terminal();
        let failed = matches!(active.state, State::Failed(_));
        self.timers.set(&Wake::Transfer(transfer.clone()), tick);
        let shown = self.records.get(transfer).map(|shown| shown.state);
        // "In flight" is set when NIXL has accepted the read; what has landed is shown by collection from then on.
        let keep = shown == Some(TransferPhase::InFlight) && phase == TransferPhase::Prepared
            || shown == Some(TransferPhase::Done)
            || shown == Some(phase);
        let awaits_digest = matches!(active.state, State::AwaitingDigest { .. });
        if !keep {
            self.records.change(transfer, |shown| shown.state = phase);
            if awaits_digest {
                self.note_arrived(transfer);
            }
        }
        let Some(stage) = &mut self.stage else { return };
        if terminal {
            stage.active.remove(transfer);
            self.timers.set(&Wake::Beat(transfer.clone()), None);
            if failed {
                self.records.end(transfer);
            }
        }
    }

    /// Whoever waited has gone: without anybody else the transfer is not wanted.
    pub(super) fn abandoned(&mut self, transfer: &TransferId) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        active.waiters.retain(|waiter| !waiter.is_closed());
        if active.waiters.is_empty() && !active.detached {
            self.drive(transfer, E::Cancel(Failure::Cancelled));
        }
    }

    /// Cancels a running transfer, or ends a landed one's decode leg.
    pub(super) fn finish(&mut self, transfer: &TransferId) -> Result<TransferSnapshot, TransferError> {
        let request = self.records.get(transfer).ok_or_else(|| TransferError::NotFound(transfer.clone()))?;
        let request = request.virtual_request.clone();
        self.drive(transfer, E::Cancel(Failure::Cancelled));
        if let Some(request) = request {
            self.collect(&request, kv::collect::Event::Finish);
        }
        self.records.get(transfer).cloned().ok_or_else(|| TransferError::NotFound(transfer.clone()))
    }

    /// Cancels everything: the engine has gone, or the process ends. Landed slots are given up too.
    pub(super) fn cancel_all(&mut self, why: &TransferError) {
        let Some(stage) = &mut self.stage else { return };
        let transfers: Vec<_> = stage.active.keys().cloned().collect();
        let landed = stage.landed.take();
        for transfer in &transfers {
            if let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) {
                active.error.get_or_insert_with(|| why.clone());
            }
            self.drive(transfer, E::Cancel(Failure::ShuttingDown));
            self.timers.set(&Wake::Transfer(transfer.clone()), None);
            self.timers.set(&Wake::Beat(transfer.clone()), None);
            self.timers.set(&Wake::Tell(transfer.clone()), None);
            // What still quiesces ends with its agents; nobody will hear of it again.
            let quiescing = self.stage.as_mut().and_then(|stage| stage.active.remove(transfer));
            if quiescing.is_some_and(|active| matches!(active.state, State::Quiescing { .. })) {
                self.records.change(transfer, |shown| shown.state = TransferPhase::Failed);
                self.records.end(transfer);
            }
        }
        for (request, slots) in landed {
            self.timers.set(&Wake::Landed(request.clone()), None);
            self.gone(&request, slots);
        }
    }

    /// What callers are told about a failure.
    pub(super) fn error_of(&self, transfer: &TransferId, why: Failure) -> TransferError {
        let active = self.stage.as_ref().and_then(|stage| stage.active.get(transfer));
        let details = active.and_then(|active| active.error.clone());
        let blocks = active.map_or(0, |active| active.blocks);
        match why {
            Failure::Peer | Failure::Nixl(_) | Failure::NoSourceDigest | Failure::ShuttingDown => {
                details.unwrap_or(TransferError::ShuttingDown)
            }
            Failure::StagingFull => TransferError::StagingFull { blocks, waited: self.shared.config.staging_wait },
            Failure::ExceedsStaging => {
                let capacity = self.stage.as_ref().map_or(0, |stage| stage.slots.usage().capacity);
                TransferError::RequestExceedsStaging { blocks, capacity }
            }
            Failure::LeaseExpired => {
                let shown = self.records.get(transfer);
                let request = shown.map_or_else(|| EngineRequestId::new(""), |shown| shown.source_request.clone());
                let waited = shown.map_or(Duration::ZERO, |shown| shown.started.elapsed());
                let (lease, age) = active.map_or_else(Default::default, |active| active.lease);
                TransferError::LeaseExpired { request, age: age.saturating_add(waited), lease }
            }
            Failure::DigestMismatch => details.unwrap_or(TransferError::Cancelled),
            Failure::Deadline => TransferError::Deadline,
            Failure::Cancelled => TransferError::Cancelled,
        }
    }

    /// Shows a failure.
    pub(super) fn show_failure(&mut self, transfer: &TransferId, error: &TransferError) {
        let mut detail = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            detail.push_str(": ");
            detail.push_str(&error.to_string());
            cause = error.source();
        }
        tracing::info!(transfer_id = %transfer, dp_rank = %self.own.dp_rank, code = error.code().as_str(), %detail, "transfer failed");
        let code = error.code();
        self.records.change(transfer, |shown| shown.failure = Some(TransferFailure { code, detail }));
    }
}

/// Whether asking again who is there could help. Others may be reading from the peer: their heartbeats and notifications do not get out
/// while its metadata is dropped and loaded anew, so that must not happen for a fault of our own.
fn blames_peer(error: &ReadError) -> bool {
    use nixl::FabricError as Error;
    matches!(error, ReadError::Fabric(Error::Nixl(_) | Error::Transfer(_) | Error::UnknownPeer(_)))
}

fn nixl_code(error: &nixl::FabricError) -> i32 {
    match error {
        nixl::FabricError::Nixl(error) | nixl::FabricError::Transfer(error) => error.code,
        nixl::FabricError::Busy
        | nixl::FabricError::Closed
        | nixl::FabricError::Lost
        | nixl::FabricError::Abandoned
        | nixl::FabricError::UnknownPeer(_)
        | nixl::FabricError::Metadata
        | nixl::FabricError::Descs(_)
        | nixl::FabricError::Memory(_) => 0,
    }
}

fn phase(state: &State) -> TransferPhase {
    match state {
        State::Queued(_) => TransferPhase::Queued,
        State::AwaitingPeer(_) => TransferPhase::Handshaking,
        State::InFlight { .. } => TransferPhase::Prepared,
        State::Quiescing { .. } => TransferPhase::Quiescing,
        State::AwaitingDigest { .. } | State::Verifying { .. } => TransferPhase::Verifying,
        State::Landed { .. } | State::Done { .. } => TransferPhase::Landed,
        State::Failed(_) => TransferPhase::Failed,
    }
}

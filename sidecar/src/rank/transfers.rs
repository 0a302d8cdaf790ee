//! Beginning transfers, joining them, driving their machines.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::{EngineId, EngineRequestId, TpRank, TransferId};
use kv::lease::Lease;
use kv::readiness::RankState;
use kv::slots::Ask;
use kv::transfer::{Event as E, Failure, State, Terms};
use nixl::ReadDone;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vllm_wire::params::KvTransferParams;

use super::jobs::{self, ReadError};
use super::stage::{Active, Marks, Stage};
use super::{Rank, Waiter, Wake, answer};
use crate::model::counters::add;
use crate::model::{
    ParamsProblem, Role, StartTransfer, TransferError, TransferFailure, TransferPhase, TransferSnapshot,
};
use crate::peers::{Handshake, Lookup, Peer};
use side_channel::Endpoint;
use std::collections::VecDeque;

impl Rank {
    /// Begins a transfer, or joins the one that has this id.
    pub(super) fn start(
        &mut self,
        transfer: TransferId,
        start: StartTransfer,
        begun: oneshot::Sender<Result<TransferId, TransferError>>,
        waiter: Option<Waiter>,
    ) {
        if self.records.get(&transfer).is_some() {
            self.join(&transfer, waiter);
            return answer(begun, Ok(transfer));
        }
        match self.admit(&start) {
            Ok(blocks) => {
                self.begin(&transfer, start, blocks, waiter);
                answer(begun, Ok(transfer));
            }
            Err(error) => {
                self.shared.board.free_attempt(&start.attempt, &transfer);
                self.shared.counters.count_end(crate::model::Ended::Failed(error.code()));
                if let Some(waiter) = waiter {
                    answer(waiter, Err(error.clone()));
                }
                answer(begun, Err(error));
            }
        }
    }

    fn join(&mut self, transfer: &TransferId, waiter: Option<Waiter>) {
        if let Some(outcome) = self.records.outcome(transfer) {
            if let Some(waiter) = waiter {
                answer(waiter, outcome.clone().map(|landed| (*landed).clone()));
            }
            return;
        }
        if let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) {
            active.detached |= waiter.is_none();
            active.waiters.extend(waiter);
        }
    }

    /// Everything that can be refused before P is asked; the number of blocks otherwise.
    fn admit(&self, start: &StartTransfer) -> Result<u32, TransferError> {
        if self.shared.gate.is_cancelled() {
            return Err(TransferError::ShuttingDown);
        }
        if self.shared.config.role != Role::Decode {
            return Err(TransferError::ParamsInvalid(ParamsProblem::WrongRole));
        }
        let (state, reasons) = self.readiness();
        let Some(stage) = self.stage.as_ref().filter(|_| state == RankState::Ready) else {
            return Err(TransferError::RankNotReady { rank: self.own.dp_rank, state, reasons });
        };
        check_params(&start.params, stage, self.shared.config.tp_size).map_err(TransferError::ParamsInvalid)?;
        let blocks = u32::try_from(start.params.remote_block_ids.total()).unwrap_or(u32::MAX);
        let capacity = stage.slots.usage().capacity.saturating_sub(stage.lost);
        if blocks > capacity {
            return Err(TransferError::RequestExceedsStaging { blocks, capacity });
        }
        let now = Instant::now();
        let length = start.lease.unwrap_or(self.shared.config.kv_lease);
        if Lease::begun(length, start.prefill_done_age, now.into_std()).is_over(now.into_std()) {
            let request = start.params.remote_request_id.clone();
            return Err(TransferError::LeaseExpired { request, age: start.prefill_done_age, lease: length });
        }
        Ok(blocks)
    }

    fn begin(&mut self, transfer: &TransferId, start: StartTransfer, blocks: u32, waiter: Option<Waiter>) {
        let now = Instant::now();
        let Some(stage) = &mut self.stage else { return };
        let config = &self.shared.config;
        let length = start.lease.unwrap_or(config.kv_lease);
        let terms = Terms {
            lease: Lease::begun(length, start.prefill_done_age, now.into_std()),
            deadline: start.deadline.into_std(),
            shards: config.tp_size,
        };
        add(&self.shared.counters.started, 1);
        self.records.open(TransferSnapshot {
            transfer: transfer.clone(),
            attempt: start.attempt,
            request_label: start.request_label,
            dp_rank: self.own.dp_rank,
            state: TransferPhase::Queued,
            blocks,
            bytes: 0,
            stages: crate::model::Stages::default(),
            source_engine: start.params.remote_engine_id.clone(),
            source_request: start.params.remote_request_id.clone(),
            virtual_request: None,
            collected_by: None,
            failure: None,
            started: now,
        });
        let detached = waiter.is_none();
        let marks = Marks {
            started: now,
            granted: None,
            arrived: None,
            quiescing: None,
            post: Duration::ZERO,
            wire: Duration::ZERO,
        };
        let active = Active {
            state: State::new(terms),
            params: start.params,
            blocks,
            slots: None,
            assignment: None,
            peer: None,
            error: None,
            gave_up: CancellationToken::new(),
            waiters: waiter.into_iter().collect(),
            detached,
            landed: None,
            lease: (length, start.prefill_done_age),
            lease_over: Instant::from_std(terms.lease.over_at()),
            marks,
        };
        stage.active.insert(transfer.clone(), active);
        let until = now + config.staging_wait;
        let asked = stage.slots.ask(transfer.clone(), blocks, until.into_std());
        // The handshake goes on while the transfer waits for staging: heartbeats need P's agents.
        self.connect(transfer);
        match asked {
            Ask::Granted(slots) => self.granted(transfer, slots),
            Ask::Queued => self.drive(transfer, E::Tick),
            Ask::Exceeds { .. } => self.drive(transfer, E::StagingRefused(Failure::ExceedsStaging)),
        }
        self.wake_for_queue();
    }

    /// Looks the peer up and asks it if nobody has; on a known one, heartbeats begin.
    pub(super) fn connect(&mut self, transfer: &TransferId) {
        let Some(stage) = self.stage.as_mut().filter(|stage| stage.recycling != super::stage::Recycling::Running)
        else {
            return;
        };
        let Some(active) = stage.active.get(transfer) else { return };
        let engine = active.params.remote_engine_id.clone();
        match stage.peers.look_up(&engine, transfer, Instant::now()) {
            Lookup::Known(peer) => self.peer_known(transfer, peer),
            Lookup::Wait => {}
            Lookup::Ask => {
                let handshake = Handshake {
                    side_channel: Arc::clone(&self.shared.side_channel),
                    endpoint: Endpoint::new(active.params.remote_host.clone(), active.params.remote_port),
                    engine,
                    hash: stage.session.identity.hash.clone(),
                    layouts: stage.session.shards.iter().map(|shard| Arc::clone(&shard.engine)).collect(),
                    pull: stage.session.shards.iter().map(|shard| Arc::clone(&shard.pull.fabric)).collect(),
                };
                self.shared.tasks.spawn(jobs::shake_hands(handshake, stage.epoch, self.events.clone()));
            }
        }
    }

    pub(super) fn on_peer(&mut self, epoch: u64, engine: &EngineId, answer: Result<Arc<Peer>, TransferError>) {
        let Some(stage) = self.stage.as_mut().filter(|stage| stage.epoch == epoch) else { return };
        let waiting = stage.peers.answered(engine, answer.as_ref().ok().cloned(), Instant::now());
        let evicted = stage.peers.evict();
        match answer {
            Ok(peer) => {
                add(&self.shared.counters.handshakes, 1);
                for transfer in waiting {
                    self.peer_known(&transfer, Arc::clone(&peer));
                }
            }
            Err(error) => {
                add(&self.shared.counters.handshakes_failed, 1);
                tracing::warn!(dp_rank = %self.own.dp_rank, peer = %engine, %error, code = error.code().as_str(), "handshake failed");
                for transfer in waiting {
                    self.peer_failed(&transfer, error.clone());
                }
            }
        }
        if let Some(peer) = evicted {
            self.drop_peer(&peer);
        }
    }

    fn peer_known(&mut self, transfer: &TransferId, peer: Arc<Peer>) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        let pool = peer.blocks();
        let listed = active.params.remote_block_ids.groups().iter().flat_map(|group| group.ids());
        if let Some(block) = listed.copied().find(|block| block.0 >= pool) {
            let problem = ParamsProblem::BlockOutOfRange { block, pool };
            return self.peer_failed(transfer, TransferError::ParamsInvalid(problem));
        }
        active.peer = Some(peer);
        self.beat(transfer);
        self.peer_ready(transfer);
    }

    /// Goes on with a transfer that has slots and a peer, unless the agents are about to be made anew.
    pub(super) fn peer_ready(&mut self, transfer: &TransferId) {
        let Some(stage) = &self.stage else { return };
        let known = stage.active.get(transfer).is_some_and(|active| active.peer.is_some());
        if known && stage.recycling == super::stage::Recycling::No {
            self.drive(transfer, E::PeerReady);
        }
    }

    fn peer_failed(&mut self, transfer: &TransferId, error: TransferError) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        active.error = Some(error);
        let event = if matches!(active.state, State::Queued(_)) { E::Cancel(Failure::Peer) } else { E::PeerFailed };
        self.drive(transfer, event);
    }

    pub(super) fn on_posted(&mut self, transfer: &TransferId, _shard: TpRank, took: Duration) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        active.marks.post = active.marks.post.max(took);
        let (post, in_flight) = (active.marks.post, matches!(active.state, State::InFlight { .. }));
        self.records.change(transfer, |shown| {
            shown.stages.post = Some(post);
            if in_flight {
                shown.state = TransferPhase::InFlight;
            }
        });
    }

    pub(super) fn on_read_ended(&mut self, transfer: &TransferId, shard: TpRank, answer: Result<ReadDone, ReadError>) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        match answer {
            Ok(done) => {
                active.marks.wire = active.marks.wire.max(done.wire);
                active.marks.arrived = Some(Instant::now());
                self.drive(transfer, E::ShardLanded { shard, bytes: done.bytes });
            }
            Err(error) => {
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
                self.forget_peer_of(transfer);
                self.drive(transfer, E::ShardFailed { shard, code, quiet });
            }
        }
    }

    fn plan_error(&self, transfer: &TransferId, error: ReadError) -> TransferError {
        let (peer, blocks) = self.source_of(transfer);
        TransferError::PlanFailed { peer, blocks, source: Arc::new(error) }
    }

    fn read_error(&self, transfer: &TransferId, error: nixl::FabricError) -> TransferError {
        let (peer, blocks) = self.source_of(transfer);
        TransferError::ReadFailed { peer, blocks, source: Arc::new(error) }
    }

    fn source_of(&self, transfer: &TransferId) -> (EngineId, u32) {
        let shown = self.records.get(transfer);
        shown.map_or_else(|| (EngineId::new(""), 0), |shown| (shown.source_engine.clone(), shown.blocks))
    }

    /// A read failed: the next transfer asks again who is there.
    fn forget_peer_of(&mut self, transfer: &TransferId) {
        let (engine, _) = self.source_of(transfer);
        if let Some(peer) = self.stage.as_mut().and_then(|stage| stage.peers.forget(&engine)) {
            // Its agents stay loaded: other reads from it may be in flight. They go with the pull agents.
            tracing::info!(dp_rank = %self.own.dp_rank, peer = %engine, shards = peer.shards.len(), "peer forgotten after a failed read");
        }
    }

    fn drop_peer(&self, peer: &Peer) {
        let Some(stage) = &self.stage else { return };
        let in_use =
            stage.active.values().any(|active| active.peer.as_ref().is_some_and(|used| std::ptr::eq(&**used, peer)));
        if !in_use {
            for (fabric, agent) in stage.lines_to(peer) {
                self.shared.tasks.spawn(async move {
                    if let Err(error) = fabric.forget_peer(agent.clone()).await {
                        tracing::debug!(%error, %agent, "peer's metadata not dropped");
                    }
                });
            }
        }
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
        if !keep {
            self.records.change(transfer, |shown| shown.state = phase);
        }
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
        let landed: Vec<_> = std::mem::take(&mut stage.landed).into_iter().collect();
        for transfer in &transfers {
            if let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) {
                active.error.get_or_insert_with(|| why.clone());
            }
            self.drive(transfer, E::Cancel(Failure::ShuttingDown));
            self.timers.set(&Wake::Transfer(transfer.clone()), None);
            self.timers.set(&Wake::Beat(transfer.clone()), None);
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
            Failure::Peer | Failure::Nixl(_) | Failure::ShuttingDown => details.unwrap_or(TransferError::ShuttingDown),
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
        State::Verifying { .. } => TransferPhase::Verifying,
        State::Landed { .. } | State::Done { .. } => TransferPhase::Landed,
        State::Failed(_) => TransferPhase::Failed,
    }
}

/// What can be checked without asking P.
fn check_params(params: &KvTransferParams, stage: &Stage, tp_size: u16) -> Result<(), ParamsProblem> {
    if !params.do_remote_prefill || params.do_remote_decode {
        return Err(ParamsProblem::NotForDecode);
    }
    if let Some(mode) = params.transfer_mode.as_ref().filter(|mode| *mode != "pull") {
        return Err(ParamsProblem::TransferMode(mode.clone()));
    }
    if params.tp_size != tp_size {
        return Err(ParamsProblem::TpSize { theirs: params.tp_size, ours: tp_size });
    }
    for (field, value) in [("dcp_size", params.dcp_size), ("pp_size", params.pp_size)] {
        if value != 1 {
            return Err(ParamsProblem::Parallelism { field, value });
        }
    }
    if params.remote_engine_id == *stage.id() {
        return Err(ParamsProblem::OwnEngine);
    }
    let tokens = params.remote_num_tokens;
    let Some(shard) = stage.session.shards.first() else { return Ok(()) };
    let (listed, needed) = (params.remote_block_ids.groups().len(), usize::from(shard.engine.groups()));
    if listed != needed {
        return Err(ParamsProblem::Groups { listed, needed });
    }
    let needed = shard.engine.blocks_for(tokens);
    for (group, list) in params.remote_block_ids.groups().iter().enumerate() {
        let listed = u64::try_from(list.len()).unwrap_or(u64::MAX);
        if listed != needed {
            return Err(ParamsProblem::BlockCount { group, listed, needed, tokens });
        }
    }
    Ok(())
}

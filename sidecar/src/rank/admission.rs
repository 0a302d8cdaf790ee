//! Beginning transfers: what can be refused at once, and everything that starts with one that is not.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::TransferId;
use kv::lease::Lease;
use kv::readiness::RankState;
use kv::slots::Ask;
use kv::transfer::{Event as E, Failure, State, Terms};
use side_channel::Endpoint;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vllm_wire::params::KvTransferParams;

use super::board::Taken;
use super::stage::{Active, Marks, Stage};
use super::verify::Verification;
use super::{Rank, Waiter, answer};
use crate::model::counters::add;
use crate::model::{
    Ended, ParamsProblem, QueuedBehind, ReadFacts, Role, Stages, StartTransfer, TransferError, TransferPhase,
    TransferSnapshot,
};
use crate::spans;

/// The most transfers of one rank that are under way or wait for staging.
const MOST_ACTIVE: usize = 4096;

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
        let admitted = self.admit(&start).and_then(|blocks| {
            let verification = self.verification(&transfer, &start)?;
            self.take_source(&transfer, &start).map(|()| (blocks, verification))
        });
        match admitted {
            Ok((blocks, verification)) => {
                self.begin(&transfer, start, (blocks, verification), waiter);
                answer(begun, Ok(transfer));
            }
            Err(error) => {
                self.shared.board.free_attempt(&start.attempt, &transfer);
                self.shared.counters.count_end(Ended::Failed(error.code()));
                if let Some(waiter) = waiter {
                    answer(waiter, Err(error.clone()));
                }
                answer(begun, Err(error));
            }
        }
    }

    /// One prefill lands once: P is told then, and may reuse the blocks that another attempt would still be reading.
    fn take_source(&self, transfer: &TransferId, start: &StartTransfer) -> Result<(), TransferError> {
        let (engine, request) = (&start.params.remote_engine_id, &start.params.remote_request_id);
        let taken = |taken| match taken {
            Taken::By(by) => TransferError::SourceTaken { request: request.clone(), by },
            Taken::Before => TransferError::SourceMoved { request: request.clone() },
        };
        let kv_lease = self.shared.config.kv_lease;
        let until = Instant::now() + start.lease.map_or(kv_lease, |lease| lease.max(kv_lease));
        self.shared.board.take_source(engine, request, transfer, until).map_err(taken)
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
        if stage.active.len() >= MOST_ACTIVE {
            return Err(TransferError::Busy { rank: self.own.dp_rank });
        }
        check_params(&start.params, stage, self.shared.config.tp_size).map_err(TransferError::ParamsInvalid)?;
        let peer = Endpoint::new(start.params.remote_host.clone(), start.params.remote_port);
        self.shared.config.peers.certainly(&peer).map_err(TransferError::PeerNotAllowed)?;
        let blocks = u32::try_from(start.params.remote_block_ids.total()).unwrap_or(u32::MAX);
        let usage = stage.slots.usage();
        let capacity = usage.capacity.saturating_sub(usage.quarantined);
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

    fn begin(
        &mut self,
        transfer: &TransferId,
        start: StartTransfer,
        (blocks, verification): (u32, Option<Verification>),
        waiter: Option<Waiter>,
    ) {
        let now = Instant::now();
        let Some(stage) = &mut self.stage else { return };
        let config = &self.shared.config;
        let length = start.lease.unwrap_or(config.kv_lease);
        let terms = Terms {
            lease: Lease::begun(length, start.prefill_done_age, now.into_std()),
            deadline: start.deadline.into_std(),
            shards: config.tp_size,
            source: Verification::wanted(verification.as_ref()),
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
            stages: Stages::default(),
            starts: Stages { queued: Some(Duration::ZERO), ..Stages::default() },
            read: Arc::new(ReadFacts {
                address: Some(Endpoint::new(start.params.remote_host.clone(), start.params.remote_port)),
                ..ReadFacts::default()
            }),
            source_engine: start.params.remote_engine_id.clone(),
            source_request: start.params.remote_request_id.clone(),
            virtual_request: None,
            collected_by: None,
            freed: None,
            failure: None,
            started: now,
            trace: spans::continued(start.trace, self.shared.spans.are_on()),
        });
        let detached = waiter.is_none();
        let marks = Marks {
            started: now,
            granted: None,
            reads_due: None,
            arrived: None,
            quiescing: None,
            post: Duration::ZERO,
            waited: Duration::ZERO,
            wire: Duration::ZERO,
        };
        let active = Active {
            state: State::new(terms),
            params: start.params,
            blocks,
            slots: None,
            assignment: None,
            peer: None,
            untold: None,
            error: None,
            gave_up: CancellationToken::new(),
            waiters: waiter.into_iter().collect(),
            detached,
            landed: None,
            lease: (length, start.prefill_done_age),
            lease_over: Instant::from_std(terms.lease.over_at()),
            deadline: start.deadline,
            verification,
            marks,
        };
        stage.active.insert(transfer.clone(), active);
        let until = now + config.staging_wait;
        let usage = stage.slots.usage();
        let asked = stage.slots.ask(transfer.clone(), blocks, until.into_std());
        self.ask_source(transfer);
        // The handshake goes on while the transfer waits for staging: heartbeats need P's agents.
        self.connect(transfer);
        match asked {
            Ask::Granted(slots) => self.granted(transfer, slots),
            Ask::Queued => {
                let behind =
                    QueuedBehind { needed: blocks, free: usage.free, capacity: usage.capacity, ahead: usage.waiting };
                self.records.change(transfer, |shown| shown.facts_mut().queued_behind = Some(behind));
                self.drive(transfer, E::Tick);
            }
            Ask::Exceeds { .. } => self.drive(transfer, E::StagingRefused(Failure::ExceedsStaging)),
        }
        self.wake_for_queue();
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

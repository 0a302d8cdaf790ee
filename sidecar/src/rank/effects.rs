//! Doing what a transfer's machine asks for.

use std::sync::Arc;
use std::time::Duration;

use kv::collect;
use kv::copy::SlotAssignment;
use kv::ids::{EngineRequestId, TpRank, TransferId};
use kv::slots::SlotSet;
use kv::transfer::{Effect as F, Event as E, Failure, State};
use tokio::time::Instant;

use super::jobs::{self, ReadShard};
use super::landed_sets::LandedSlots;
use super::records::Outcome;
use super::{Rank, Wake, answer};
use crate::latency::Series;
use crate::model::counters::add;
use crate::model::{Ended, Landed, Receipt, Stages, TransferError, TransferPhase};

impl Rank {
    /// Does one thing; what follows from it at once comes back as events.
    pub(super) fn perform(&mut self, transfer: &TransferId, effect: F) -> Vec<E> {
        match effect {
            F::WithdrawAsk => {
                if let Some(stage) = &mut self.stage {
                    stage.slots.withdraw(transfer);
                }
            }
            F::ConnectPeer => return self.connected(transfer),
            F::PostReads => self.post_reads(transfer),
            F::Verify => return self.verify(transfer),
            F::Publish => self.publish(transfer),
            F::HandOver => self.hand_over(transfer),
            F::TellProducer => self.tell_producer(transfer),
            F::ReleaseSlots => {
                if let Some(slots) = self.take_slots(transfer) {
                    self.release(slots);
                }
            }
            F::QuarantineSlots => self.quarantine(transfer),
        }
        Vec::new()
    }

    /// The slots are there: which block goes where is settled now.
    pub(super) fn granted(&mut self, transfer: &TransferId, slots: SlotSet) {
        let Some(stage) = &mut self.stage else { return };
        let Some(active) = stage.active.get_mut(transfer) else {
            stage.slots.release(slots);
            return;
        };
        let now = Instant::now();
        active.marks.granted = Some(now);
        active.assignment = SlotAssignment::new(&active.params.remote_block_ids, &slots).ok().map(Arc::new);
        active.slots = Some(slots);
        let queued = now.duration_since(active.marks.started);
        self.records.change(transfer, |shown| {
            shown.stages.queued = Some(queued);
            shown.starts.handshake = Some(queued);
        });
        self.drive(transfer, E::StagingGranted);
    }

    /// Serves who waits for slots, in order.
    pub(super) fn grant_waiting(&mut self) {
        let mut changed = false;
        while let Some((transfer, slots)) = self.stage.as_mut().and_then(|stage| stage.slots.grant_next()) {
            changed = true;
            self.granted(&transfer, slots);
        }
        if changed {
            self.wake_for_queue();
        }
    }

    /// Refuses who has waited too long.
    pub(super) fn expire_queue(&mut self, now: Instant) {
        while let Some(transfer) = self.stage.as_mut().and_then(|stage| stage.slots.expire_next(now.into_std())) {
            self.drive(&transfer, E::StagingRefused(Failure::StagingFull));
        }
        self.wake_for_queue();
    }

    pub(super) fn wake_for_queue(&mut self) {
        let next = self.stage.as_ref().and_then(|stage| stage.slots.next_expiry());
        self.timers.set(&Wake::Queue, next.map(Instant::from_std));
    }

    /// The handshake was begun with the transfer; if it has ended, reading can begin.
    fn connected(&self, transfer: &TransferId) -> Vec<E> {
        let Some(stage) = &self.stage else { return Vec::new() };
        let known = stage.active.get(transfer).is_some_and(|active| active.peer.is_some());
        if known { vec![E::PeerReady] } else { Vec::new() }
    }

    fn post_reads(&mut self, transfer: &TransferId) {
        let Some(stage) = &self.stage else { return };
        let Some(active) = stage.active.get(transfer) else { return };
        let (Some(peer), Some(slots)) = (&active.peer, &active.assignment) else { return };
        let due = Instant::now();
        let slow_wire = self.shared.config.faults.slow_wire.filter(|slow| slow.port == active.params.remote_port);
        for (shard, ours) in (0..).map(TpRank).zip(&stage.session.shards) {
            let read = ReadShard {
                transfer: transfer.clone(),
                shard,
                peer: Arc::clone(peer),
                puller: slow_wire.map_or_else(|| ours.pull.clone(), |slow| ours.pull.slowed(slow)),
                arena: ours.arena.clone(),
                blocks: active.params.remote_block_ids.clone(),
                slots: Arc::clone(slots),
                hold: self.shared.config.faults.hold_pull,
                gave_up: active.gave_up.clone(),
                due,
                events: self.events.clone(),
            };
            let begun = read.begin_small();
            self.shared.tasks.spawn(read.run(begun));
        }
        let bytes = stage.bytes_of(&active.params.remote_block_ids);
        let handshake = active.marks.granted.map(|granted| due.duration_since(granted));
        self.records.change(transfer, |shown| {
            shown.bytes = bytes;
            shown.stages.handshake = handshake;
            shown.starts.post = Some(shown.offset(due));
        });
        if let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) {
            active.marks.reads_due = Some(due);
        }
    }

    /// Puts the receipt together; it is compared with what P holds, goes on record, and is given when that is done.
    fn verify(&mut self, transfer: &TransferId) -> Vec<E> {
        let Some(landed) = self.receipt(transfer) else { return vec![E::Cancel(Failure::Cancelled)] };
        let landed = Arc::new(landed);
        self.note_arrived(transfer);
        let Some(stage) = &mut self.stage else { return Vec::new() };
        let (arenas, comparison) = (stage.arenas(), Self::comparison(stage, transfer));
        let Some(active) = stage.active.get_mut(transfer) else { return Vec::new() };
        if active.verification.is_some() != comparison.is_some() {
            // Never: the machine verifies only with the source's digests. A receipt without them would be a lie.
            active.error = Some(TransferError::NotCompared);
            return vec![E::DigestMismatch];
        }
        active.landed = Some(Arc::clone(&landed));
        let spoil =
            self.shared.config.faults.spoil.zip(active.assignment.clone()).map(|(how, slots)| (how, arenas, slots));
        if spoil.is_none() && comparison.is_none() && !self.shared.receipts.keeps() {
            return vec![E::Verified];
        }
        let receipts = Arc::clone(&self.shared.receipts);
        self.shared.tasks.spawn(jobs::verify(landed, receipts, (spoil, comparison), self.events.clone()));
        Vec::new()
    }

    /// Shows that all bytes are here, once.
    pub(super) fn note_arrived(&mut self, transfer: &TransferId) {
        let Some(active) = self.stage.as_ref().and_then(|stage| stage.active.get(transfer)) else { return };
        let (arrived, post, wire) = (active.marks.arrived, active.marks.waited, active.marks.wire);
        self.records.change(transfer, |shown| {
            if shown.starts.verify.is_none() {
                shown.stages = Stages { post: Some(post), wire: Some(wire), ..shown.stages };
                shown.starts.verify = arrived.map(|arrived| shown.offset(arrived));
            }
        });
    }

    fn receipt(&self, transfer: &TransferId) -> Option<Landed> {
        let stage = self.stage.as_ref()?;
        let active = stage.active.get(transfer)?;
        let shown = self.records.get(transfer)?;
        let State::Verifying { bytes } = active.state else { return None };
        let endpoint = &self.own.door.as_ref()?.endpoint;
        let now = Instant::now();
        let request = EngineRequestId::new(format!("kvgate-{}", uuid::Uuid::new_v4().simple()));
        let virtual_engine = &stage.session.virtual_engine;
        let params =
            virtual_engine.params_for_decode(&active.params, endpoint, active.assignment.as_ref()?, &request).ok()?;
        let lease_left = active.lease_over.saturating_duration_since(now);
        let verify = active.marks.arrived.map_or(Duration::ZERO, |arrived| now.duration_since(arrived));
        let (post, wire) = (Some(active.marks.waited), Some(active.marks.wire));
        let stages = Stages { post, wire, verify: Some(verify), ..shown.stages };
        let receipt = Receipt {
            dp_rank: self.own.dp_rank,
            engine_id: stage.session.identity.engine.clone(),
            virtual_engine_id: virtual_engine.id.clone(),
            source_engine_id: active.params.remote_engine_id.clone(),
            request_id: request,
            blocks: active.blocks,
            bytes,
            stages,
            source_lease_left: lease_left,
            collect_by: self.collect_terms().claim,
            digest: Self::receipt_digest(active.verification.as_ref()),
        };
        Some(Landed {
            transfer: transfer.clone(),
            attempt: shown.attempt.clone(),
            receipt,
            params,
            source_request: active.params.remote_request_id.clone(),
        })
    }

    /// Answers everyone who waits.
    fn publish(&mut self, transfer: &TransferId) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        let waiters = std::mem::take(&mut active.waiters);
        active.gave_up.cancel();
        let landed = active.landed.clone();
        let arrived = active.marks.arrived;
        let failure = match &active.state {
            State::Failed(why) | State::Quiescing { why, .. } => Some(*why),
            State::Queued(_)
            | State::AwaitingPeer(_)
            | State::InFlight { .. }
            | State::AwaitingDigest { .. }
            | State::Verifying { .. }
            | State::Landed { .. }
            | State::Done { .. } => None,
        };
        let outcome: Outcome = match (failure, landed) {
            (None, Some(landed)) => Ok(landed),
            (why, _) => Err(self.error_of(transfer, why.unwrap_or(Failure::Cancelled))),
        };
        match &outcome {
            Ok(landed) => {
                let receipt = &landed.receipt;
                self.shared.counters.count_end(Ended::Landed);
                add(&self.shared.counters.bytes_landed, receipt.bytes);
                // What came after the receipt was put together, its recording for one, is part of the stage.
                let verify = arrived.map(|arrived| arrived.elapsed());
                let stages = Stages { verify, ..receipt.stages };
                self.shared.counters.stages.of(self.own.dp_rank).observe_landed(&stages);
                if let Some(shown) = self.records.get(transfer) {
                    let series = Series { dp_rank: self.own.dp_rank, peer: Some(shown.source_engine.clone()) };
                    self.shared.latency.landed(&series, &shown.read, &stages, receipt.bytes);
                    self.shared.known_peers.landed(self.own.dp_rank, &shown.source_engine, receipt.bytes);
                }
                tracing::debug!(
                    transfer_id = %transfer,
                    dp_rank = %self.own.dp_rank,
                    blocks = receipt.blocks,
                    bytes = receipt.bytes,
                    wire_us = receipt.stages.wire.map(|wire| wire.as_micros()),
                    "transfer landed"
                );
                let (bytes, request) = (receipt.bytes, receipt.request_id.clone());
                self.records.decide(transfer, outcome.clone());
                self.records.change(transfer, |shown| {
                    shown.stages = stages;
                    shown.bytes = bytes;
                    shown.virtual_request = Some(request);
                    // Whoever is answered below may look at once.
                    shown.state = TransferPhase::Landed;
                });
            }
            Err(error) => {
                self.shared.counters.count_end(Ended::Failed(error.code()));
                self.records.decide(transfer, outcome.clone());
                self.records.change(transfer, |shown| shown.close_open_stage(Instant::now()));
                self.show_failure(transfer, error);
                if let Some(shown) = self.records.get(transfer) {
                    self.shared.known_peers.transfer_failed(self.own.dp_rank, &shown.source_engine, error);
                }
            }
        }
        for waiter in waiters {
            answer(waiter, outcome.clone().map(|landed| (*landed).clone()));
        }
    }

    /// The slots now belong to collection.
    fn hand_over(&mut self, transfer: &TransferId) {
        let terms = self.collect_terms();
        let tp_size = self.shared.config.tp_size;
        let Some(stage) = &mut self.stage else { return };
        let Some(active) = stage.active.get_mut(transfer) else { return };
        let (Some(slots), Some(landed)) = (active.slots.take(), active.landed.as_ref()) else { return };
        let now = Instant::now();
        let request = landed.receipt.request_id.clone();
        let state = collect::State::landed(&terms, tp_size, now.into_std());
        let due = state.next_tick(&terms).map(Instant::from_std);
        self.records.change(transfer, |shown| shown.starts.landed_idle = Some(shown.offset(now)));
        let Some(stage) = &mut self.stage else { return };
        stage.landed.insert(request.clone(), LandedSlots::new(state, transfer.clone(), slots, now));
        self.timers.set(&Wake::Landed(request), due);
        self.set_attention();
    }

    fn take_slots(&mut self, transfer: &TransferId) -> Option<SlotSet> {
        self.stage.as_mut()?.active.get_mut(transfer)?.slots.take()
    }

    /// Gives slots back, zeroed first if that is configured.
    pub(super) fn release(&mut self, slots: SlotSet) {
        let Some(stage) = &mut self.stage else { return };
        if self.shared.config.zero_on_release {
            stage.zeroing = stage.zeroing.saturating_add(slots.count());
            let job = jobs::zero(stage.id().clone(), stage.arenas(), slots, self.events.clone());
            self.shared.tasks.spawn(job);
        } else {
            stage.slots.release(slots);
        }
    }

    /// Slots that hold bytes of somebody are given to nobody else.
    pub(super) fn on_zeroed(&mut self, session: &kv::ids::EngineId, slots: SlotSet, clean: bool) {
        if let Some(stage) = self.stage.as_mut().filter(|stage| stage.id() == session) {
            stage.zeroing = stage.zeroing.saturating_sub(slots.count());
            if clean {
                stage.slots.release(slots);
            } else {
                stage.slots.quarantine(slots);
            }
        }
    }
}

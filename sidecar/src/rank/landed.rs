//! From landed to freed, and what D's notifications say about it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kv::collect::{Effect, Event as C, How, State, Terms};
use kv::ids::{DpRank, EngineId, EngineRequestId, TpRank, TransferId};
use nixl::{Attention, Notification};
use tokio::time::Instant;
use vllm_wire::notif::{self, Notif};

use super::landed_sets::LandedSlots;
use super::{Rank, Wake};
use crate::latency::Series;
use crate::model::counters::add;
use crate::model::{self, TransferError, TransferPhase};

/// Freed requests that are remembered per rank, to tell who collects too late.
const REMEMBER: usize = 4096;

/// What has been freed lately.
#[derive(Debug, Default)]
pub(super) struct Freed {
    how: BTreeMap<EngineRequestId, (Option<How>, TransferId)>,
    order: VecDeque<EngineRequestId>,
}

impl Freed {
    fn note(&mut self, request: EngineRequestId, how: Option<How>, transfer: TransferId) {
        self.order.push_back(request.clone());
        self.how.insert(request, (how, transfer));
        while self.order.len() > REMEMBER {
            if let Some(oldest) = self.order.pop_front() {
                self.how.remove(&oldest);
            }
        }
    }
}

impl Rank {
    /// The periods of collection. A claim lasts a third of a lease, so that a dead router is noticed before D's own patience ends.
    pub(super) fn collect_terms(&self) -> Terms {
        let lease = self.shared.config.kv_lease;
        Terms { claim: (lease / 3).max(Duration::from_millis(100)), lease }
    }

    /// Renews a claim.
    pub(super) fn claim(&mut self, transfer: &TransferId) -> Result<Duration, TransferError> {
        let shown = self.records.get(transfer).ok_or_else(|| TransferError::NotFound(transfer.clone()))?;
        let not_landed = TransferError::NotLanded { transfer: transfer.clone(), state: shown.state.as_str() };
        let request = shown.virtual_request.clone();
        let landed = self.stage.as_ref().zip(request.as_ref()).and_then(|(stage, request)| stage.landed.get(request));
        match (landed.map(LandedSlots::state), request) {
            (Some(State::Waiting { .. }), Some(request)) => {
                self.collect(&request, C::Claim);
                Ok(self.collect_terms().claim)
            }
            (Some(State::Ending { .. } | State::Freed(_)) | None, _) | (Some(State::Waiting { .. }), None) => {
                Err(not_landed)
            }
        }
    }

    /// Feeds one event to a landed slot set's machine.
    pub(super) fn collect(&mut self, request: &EngineRequestId, event: C) {
        let terms = self.collect_terms();
        let Some(stage) = &mut self.stage else { return };
        let Some((state, effect)) = stage.landed.step(request, event, &terms, Instant::now()) else { return };
        match (effect, state) {
            (Effect::Release, State::Freed(how)) => {
                if let Some(landed) = stage.landed.remove(request) {
                    self.timers.set(&Wake::Landed(request.clone()), None);
                    self.freed(request, landed, how);
                }
            }
            (Effect::Keep | Effect::Release, _) => {
                let due = state.next_tick(&terms).map(Instant::from_std);
                self.timers.set(&Wake::Landed(request.clone()), due);
            }
        }
    }

    fn freed(&mut self, request: &EngineRequestId, landed: LandedSlots, how: How) {
        match how {
            How::Collected => add(&self.shared.counters.collected, 1),
            How::Finished | How::Lapsed => {
                add(&self.shared.counters.uncollected, 1);
                tracing::info!(transfer_id = %landed.transfer, dp_rank = %self.own.dp_rank, ?how, "staging freed without D having collected it");
            }
        }
        let collect = landed.first_sign.filter(|_| how == How::Collected).map(|sign| sign.elapsed());
        self.records.change(&landed.transfer, |shown| {
            shown.stages.collect = collect;
            shown.freed = Some(how.into());
            shown.state = TransferPhase::Done;
        });
        if let Some(shown) = self.records.get(&landed.transfer) {
            self.shared.counters.stages.of(self.own.dp_rank).observe_collected(&shown.stages);
            let series = Series { dp_rank: self.own.dp_rank, peer: Some(shown.source_engine.clone()) };
            self.shared.latency.collected(&series, &shown.stages);
        }
        self.records.end(&landed.transfer);
        self.freed.note(request.clone(), Some(how), landed.transfer);
        self.release(landed.slots);
        self.set_attention();
    }

    /// The engine that a landed slot set was for is gone.
    pub(super) fn gone(&mut self, request: &EngineRequestId, landed: LandedSlots) {
        add(&self.shared.counters.uncollected, 1);
        self.records.change(&landed.transfer, |shown| {
            shown.freed = Some(model::Freed::EngineGone);
            shown.state = TransferPhase::Done;
        });
        self.records.end(&landed.transfer);
        self.freed.note(request.clone(), None, landed.transfer);
        self.release(landed.slots);
    }

    /// D says something to one shard's serving agent.
    pub(super) fn on_notification(&mut self, session: &EngineId, shard: TpRank, notification: &Notification) {
        if self.stage.as_ref().is_none_or(|stage| stage.id() != session) {
            return;
        }
        match notif::parse(&notification.message) {
            Ok(Notif::Heartbeat { requests }) => {
                for request in requests {
                    self.first_sign(&request);
                    self.collect(&request, C::Beat);
                }
            }
            Ok(Notif::Done { request, readers }) => self.on_done(shard, &request, readers, notification),
            Err(error) => {
                tracing::warn!(dp_rank = %self.own.dp_rank, from = %notification.from, %error, "notification not understood");
            }
        }
    }

    fn on_done(&mut self, shard: TpRank, request: &EngineRequestId, readers: u32, notification: &Notification) {
        let reader = self.own.builder.directory.find(&notification.from);
        let by = reader.as_ref().map(|reader| reader.dp_rank);
        let ours = reader.is_some_and(|reader| reader.dp_rank == self.own.dp_rank && reader.shard == shard);
        let landed = self.stage.as_ref().and_then(|stage| stage.landed.get(request));
        let Some(transfer) = landed.map(|landed| landed.transfer.clone()) else {
            return self.collected_late(request, by, ours);
        };
        if readers != 1 {
            tracing::warn!(dp_rank = %self.own.dp_rank, transfer_id = %transfer, readers, "D has another TP size than its metadata says");
        }
        self.first_sign(request);
        if let Some(by) = by {
            self.records.change(&transfer, |shown| shown.collected_by = Some(by));
        }
        if ours {
            self.collect(request, C::Done(shard));
            return;
        }
        // The rank that it was staged for may still come, so it stays. A stranger's word frees nothing either.
        if by.is_some_and(|by| by != self.own.dp_rank) {
            add(&self.shared.counters.wrong_rank_collect, 1);
        }
        tracing::warn!(
            transfer_id = %transfer,
            dp_rank = %self.own.dp_rank,
            collected_by = by.map(|by| by.0),
            from = %notification.from,
            "collected by another reader than it was staged for"
        );
    }

    fn collected_late(&mut self, request: &EngineRequestId, by: Option<DpRank>, ours: bool) {
        match self.freed.how.get(request) {
            None => tracing::debug!(dp_rank = %self.own.dp_rank, %request, "notification for an unknown request"),
            // Told twice by the one who had read it in time.
            Some((Some(How::Collected), _)) if ours => {}
            Some((how, transfer)) => {
                add(&self.shared.counters.late_collect, 1);
                if by.is_some_and(|by| by != self.own.dp_rank) {
                    add(&self.shared.counters.wrong_rank_collect, 1);
                }
                tracing::warn!(
                    transfer_id = %transfer,
                    dp_rank = %self.own.dp_rank,
                    collected_by = by.map(|by| by.0),
                    freed = ?how,
                    "collected after its staging was freed: D may have read another request's blocks"
                );
                if let Some(by) = by {
                    let transfer = transfer.clone();
                    self.records.change(&transfer, |shown| shown.collected_by = Some(by));
                }
            }
        }
    }

    fn first_sign(&mut self, request: &EngineRequestId) {
        let Some(landed) = self.stage.as_mut().and_then(|stage| stage.landed.get_mut(request)) else { return };
        if landed.first_sign.is_none() {
            let now = Instant::now();
            landed.first_sign = Some(now);
            let idle = now.duration_since(landed.landed_at);
            self.records.change(&landed.transfer, |shown| {
                shown.stages.landed_idle = Some(idle);
                shown.starts.collect = Some(shown.offset(now));
            });
        }
    }

    /// D's notifications are looked for eagerly while something waits to be collected.
    pub(super) fn set_attention(&self) {
        let Some(stage) = &self.stage else { return };
        let attention = if stage.landed.is_empty() { Attention::Idle } else { Attention::Eager };
        for shard in &stage.session.shards {
            shard.serve.attention(attention);
        }
    }
}

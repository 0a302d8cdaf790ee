//! Who holds which blocks, at one moment: P's handles, or D's staging slot by slot.
//!
//! Put together only when somebody asks: a busy rank's transfers pay nothing for it.

use std::sync::Arc;

use kv::collect;
use kv::slots::SlotSet;
use kv::transfer::State;
use tokio::time::Instant;

use super::Rank;
use super::landed_sets::LandedSlots;
use super::stage::{Active, Stage};
use crate::model::{HandleSnapshot, HandleState, RankHandles, StagingFigures};

impl Rank {
    /// All handles, with the staging figures that they add up to: `used_blocks` less `zeroing_blocks` is the sum of D's handles.
    pub(super) fn held(&self) -> RankHandles {
        let mut handles = self.pinned_handles();
        let mut staging = StagingFigures::default();
        if let Some(stage) = &self.stage {
            staging = stage.figures();
            handles.extend(self.landed_handles(stage));
            handles.extend(self.filling_handles(stage));
        }
        RankHandles { dp_rank: self.own.dp_rank, handles, staging }
    }

    fn landed_handles(&self, stage: &Stage) -> Vec<HandleSnapshot> {
        let (terms, now) = (self.collect_terms(), Instant::now());
        let shown = |(request, landed): (&kv::ids::EngineRequestId, &LandedSlots)| {
            let until = landed.state().next_tick(&terms).map(Instant::from_std);
            HandleSnapshot {
                dp_rank: self.own.dp_rank,
                engine_id: stage.id().clone(),
                request_id: request.clone(),
                blocks: landed.slots.count(),
                block_ids: Some(ids(&landed.slots)),
                bytes: stage.slot_bytes().saturating_mul(u64::from(landed.slots.count())),
                lease_left: until.map(|until| until.saturating_duration_since(now)).unwrap_or_default(),
                transfer: Some(landed.transfer.clone()),
                state: match landed.state() {
                    collect::State::Waiting { .. } => HandleState::Landed,
                    collect::State::Ending { .. } | collect::State::Freed(_) => HandleState::Ending,
                },
            }
        };
        stage.landed.iter().map(shown).collect()
    }

    /// Slots of transfers that have not landed; the request is P's, as D has none yet.
    fn filling_handles(&self, stage: &Stage) -> Vec<HandleSnapshot> {
        let now = Instant::now();
        let shown = |(transfer, active): (&kv::ids::TransferId, &Active)| {
            let slots = active.slots.as_ref()?;
            Some(HandleSnapshot {
                dp_rank: self.own.dp_rank,
                engine_id: active.params.remote_engine_id.clone(),
                request_id: active.params.remote_request_id.clone(),
                blocks: slots.count(),
                block_ids: Some(ids(slots)),
                bytes: stage.slot_bytes().saturating_mul(u64::from(slots.count())),
                lease_left: active.lease_over.saturating_duration_since(now),
                transfer: Some(transfer.clone()),
                state: match active.state {
                    State::Quiescing { .. } => HandleState::Quiescing,
                    State::Queued(_)
                    | State::AwaitingPeer(_)
                    | State::InFlight { .. }
                    | State::AwaitingDigest { .. }
                    | State::Verifying { .. }
                    | State::Landed { .. }
                    | State::Done { .. }
                    | State::Failed(_) => HandleState::Filling,
                },
            })
        };
        stage.active.iter().filter_map(shown).collect()
    }
}

fn ids(slots: &SlotSet) -> Arc<[Vec<u32>]> {
    Arc::from([slots.ids().iter().map(|slot| slot.0).collect::<Vec<u32>>()])
}

//! What is shown of the rank. Changes are gathered for some milliseconds: a busy rank would otherwise wake every subscriber per transfer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Rank, Wake};
use crate::model::{RankLoad, RankSnapshot, StagingFigures};

const GATHER: Duration = Duration::from_millis(20);

impl Rank {
    /// Plans to show the rank's state if anything has happened that may have changed it. Looking at all of it costs more than most of what
    /// happens, and is left to the time when it is shown.
    pub(super) fn show_soon(&mut self) {
        if std::mem::take(&mut self.stirred) && !self.timers.is_set(&Wake::Show) {
            self.timers.set(&Wake::Show, Some(Instant::now() + GATHER));
        }
    }

    /// Shows the rank's state, if it has changed.
    pub(super) fn show(&mut self) {
        let snapshot = self.snapshot();
        if self.shown.as_deref() == Some(&snapshot) {
            return;
        }
        let before = self.shown.as_ref().map(|shown| (shown.state, &shown.reasons));
        if before != Some((snapshot.state, &snapshot.reasons)) {
            tracing::info!(dp_rank = %self.own.dp_rank, state = %snapshot.state, reasons = ?snapshot.reasons, "rank state");
        }
        let snapshot = Arc::new(snapshot);
        self.shown = Some(Arc::clone(&snapshot));
        self.shared.ranks.send_modify(|ranks| {
            let ranks = Arc::make_mut(ranks);
            if let Some(place) = ranks.get_mut(usize::from(self.own.local_rank.0)) {
                *place = snapshot;
            }
        });
    }

    /// Whether nothing is under way and nothing waits to be collected.
    pub(super) fn is_idle(&self) -> bool {
        self.stage.as_ref().is_none_or(|stage| stage.active.is_empty()) && self.awaited() == 0
    }

    fn awaited(&self) -> usize {
        self.stage.as_ref().map_or(0, |stage| stage.landed.awaited())
    }

    fn snapshot(&self) -> RankSnapshot {
        let (state, reasons) = self.readiness();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let identity = self.engine.identity.as_ref();
        let landed = self.stage.as_ref().map_or(0, |stage| stage.landed.len());
        // The told-or-not tail of a landed transfer is no longer in flight for anyone outside.
        let in_flight = self.stage.as_ref().map_or(0, |stage| {
            let open = |active: &&super::stage::Active| !matches!(active.state, kv::transfer::State::Landed { .. });
            stage.active.values().filter(open).count()
        });
        RankSnapshot {
            dp_rank: self.own.dp_rank,
            local_rank: self.own.local_rank,
            state,
            reasons,
            engine_id: identity.map(|identity| identity.engine.clone()),
            compatibility_hash: identity.map(|identity| identity.hash.clone()),
            engine_version: self.engine.view.version_text.clone(),
            virtual_engine_id: self.stage.as_ref().map(|stage| stage.id().clone()),
            side_channel: self.own.door.as_ref().map(|door| door.endpoint.clone()),
            layout: identity.and_then(|identity| identity.shards.first()).map(|shard| Arc::clone(&shard.layout)),
            tp_size: self.shared.config.tp_size,
            load: self.load(),
            staging: self.stage.as_ref().map_or_else(StagingFigures::default, |stage| stage.figures()),
            in_flight: count(in_flight),
            handles: count(landed.saturating_add(self.handles.pinned())),
            awaited: count(self.awaited().saturating_add(self.handles.pinned())),
            draining: self.shared.gate.is_cancelled(),
        }
    }

    fn load(&self) -> RankLoad {
        self.engine.view.loads.get(&self.own.dp_rank.0).copied().unwrap_or_default()
    }
}

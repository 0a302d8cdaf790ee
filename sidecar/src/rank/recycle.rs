//! Ending a quarantine: hardware can no longer write for an agent that has been destroyed, so the pull agents are made anew.
//!
//! Above the threshold no further read is posted; when the last has ended, new agents take over, the old ones are destroyed, and only then
//! the slots are free. `serve` and with it everything D may be reading is not touched.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::{EngineId, TpRank};
use kv::transfer::State;
use nixl::Closed;
use tokio::time::Instant;

use super::jobs::{self, Event, Recycled};
use super::stage::{Active, Recycling, Stage};
use super::{CLOSE_WITHIN, Rank, Wake};
use crate::model::counters::add;
use crate::session::SessionError;

/// Pause after new agents could not be made.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a read that is not wanted any more may go on before its agent is given up with it.
pub(super) const QUIESCE_WITHIN: Duration = Duration::from_secs(30);
/// One slot in so many may be in quarantine before it is ended; earlier if somebody waits for slots.
const SHARE: u32 = 8;

impl Rank {
    /// Starts ending a quarantine when it is due and everything is quiet.
    pub(super) fn maybe_recycle(&mut self) {
        let paused = self.timers.is_set(&Wake::Recycle);
        let Some(stage) = self.stage.as_mut().filter(|_| !paused) else { return };
        let now = Instant::now();
        if stage.recycling == Recycling::No
            && (quarantine_is_due(stage) || stage.active.values().any(|active| hangs(active, now)))
        {
            stage.recycling = Recycling::Wanted;
        }
        let busy = |active: &Active| uses_agents(&active.state) && !hangs(active, now);
        if stage.recycling != Recycling::Wanted || stage.active.values().any(busy) {
            return;
        }
        stage.recycling = Recycling::Running;
        stage.epoch = stage.epoch.saturating_add(1);
        stage.peers.clear();
        for active in stage.active.values_mut() {
            active.peer = None;
        }
        let (session, builder, events) = (stage.id().clone(), self.own.builder.clone(), self.events.clone());
        let old: Vec<_> = stage.session.shards.iter().map(|shard| Arc::clone(&shard.pull.fabric)).collect();
        let arenas = stage.arenas();
        self.shared.tasks.spawn(async move {
            let mut pullers = Vec::with_capacity(arenas.len());
            let mut failed = None;
            for (shard, arena) in (0..).map(TpRank).zip(&arenas) {
                match builder.puller(shard, arena).await {
                    Ok(puller) => pullers.push(puller),
                    Err(error) => failed = Some(error),
                }
            }
            let answer = match failed {
                Some(error) => Err(error),
                None => Ok(Recycled { pullers, quiet: jobs::close_all(old, CLOSE_WITHIN).await != Closed::Stuck }),
            };
            jobs::report(&events, Event::Recycled { session, answer }).await;
        });
    }

    pub(super) fn on_recycled(&mut self, session: &EngineId, answer: Result<Recycled, SessionError>) {
        let Some(stage) = self.stage.as_mut().filter(|stage| stage.id() == session) else {
            // The session has ended meanwhile: what was made for it ends too.
            if let Ok(made) = answer {
                let agents = made.pullers.into_iter().map(|puller| puller.fabric).collect();
                self.shared.tasks.spawn(async move {
                    let _: Closed = jobs::close_all(agents, CLOSE_WITHIN).await;
                });
            }
            return;
        };
        stage.recycling = Recycling::No;
        match answer {
            Ok(made) => {
                for (shard, puller) in stage.session.shards.iter_mut().zip(made.pullers) {
                    shard.pull = puller;
                    add(&self.shared.counters.recycled_agents, 1);
                }
                if made.quiet {
                    let slots = stage.slots.end_quarantine();
                    stage.lost = 0;
                    tracing::info!(dp_rank = %self.own.dp_rank, slots, "quarantine ended: the pull agents were made anew");
                } else {
                    stage.lost = stage.slots.usage().quarantined;
                }
                let agents = stage.agents();
                self.shared.agents.lock().insert(self.own.local_rank, agents);
            }
            Err(error) => {
                tracing::error!(dp_rank = %self.own.dp_rank, %error, "quarantine not ended: no new agents");
                self.timers.set(&Wake::Recycle, Some(Instant::now() + PAUSE));
            }
        }
        // Every transfer that still waits needs its peer loaded again.
        let waiting: Vec<_> = self.stage.iter().flat_map(|stage| stage.active.keys().cloned()).collect();
        for transfer in waiting {
            self.connect(&transfer);
        }
    }
}

fn quarantine_is_due(stage: &Stage) -> bool {
    let usage = stage.slots.usage();
    let fresh = usage.quarantined.saturating_sub(stage.lost);
    fresh > 0 && (usage.waiting > 0 || fresh >= (usage.capacity / SHARE).max(1))
}

/// Whether an unwanted read goes on for so long that only the end of its agent ends it.
fn hangs(active: &Active, now: Instant) -> bool {
    let since = active.marks.quiescing.filter(|_| matches!(active.state, State::Quiescing { .. }));
    since.is_some_and(|since| now >= since + QUIESCE_WITHIN)
}

/// Whether a transfer has something to do with the pull agents that must end first.
fn uses_agents(state: &State) -> bool {
    match state {
        State::InFlight { .. } | State::Quiescing { .. } | State::Verifying { .. } | State::Landed { .. } => true,
        State::Queued(_) | State::AwaitingPeer(_) | State::Done { .. } | State::Failed(_) => false,
    }
}

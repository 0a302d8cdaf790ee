//! Ending a quarantine: hardware can no longer write for an agent that has been destroyed, so the pull agents are made anew.
//!
//! New agents take over all new reads at once. The old generation is closed when none of its transfers needs it any more (or those that
//! are left are not wanted and hang), and only when it is gone its slots are free. `serve`, and with it everything that D may be reading,
//! is not touched.

use std::time::Duration;

use kv::ids::{EngineId, TpRank, TransferId};
use kv::slots::SlotSet;
use kv::transfer::{Event as E, State};
use nixl::Closed;
use tokio::time::Instant;

use super::jobs::{self, Event};
use super::stage::{Active, Outgoing, Stage};
use super::{CLOSE_WITHIN, Rank, Wake};
use crate::model::counters::add;
use crate::session::{Puller, SessionError};

/// Pause after new agents could not be made.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a read that is not wanted any more may go on before its agent is given up with it.
pub(super) const QUIESCE_WITHIN: Duration = Duration::from_secs(30);
/// One slot in so many may be in quarantine before it is ended; earlier if somebody waits for slots.
const SHARE: u32 = 8;
/// The most generations that are on their way out at a time.
const OUTGOING: usize = 4;

impl Rank {
    /// Makes new agents when a quarantine is to be ended, and closes old ones that nobody needs.
    pub(super) fn maybe_recycle(&mut self) {
        let now = Instant::now();
        let paused = self.timers.is_set(&Wake::Recycle);
        let Some(stage) = &mut self.stage else { return };
        if !paused && !stage.renewing && stage.outgoing.len() < OUTGOING && renewal_is_due(stage, now) {
            stage.renewing = true;
            self.renew();
        }
        self.close_outgoing(now);
    }

    fn renew(&self) {
        let Some(stage) = &self.stage else { return };
        let (session, builder, events) = (stage.id().clone(), self.own.builder.clone(), self.events.clone());
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
            let answer = failed.map_or(Ok(pullers), Err);
            jobs::report(&events, Event::Renewed { session, answer }).await;
        });
    }

    pub(super) fn on_renewed(&mut self, session: &EngineId, answer: Result<Vec<Puller>, SessionError>) {
        let Some(stage) = self.stage.as_mut().filter(|stage| stage.id() == session) else {
            // The session has ended meanwhile: what was made for it ends too.
            if let Ok(made) = answer {
                let (made, agents) =
                    (made.into_iter().map(|puller| puller.fabric).collect(), self.own.builder.agents.clone());
                self.shared.tasks.spawn(async move {
                    let _: Closed = agents.close(made, CLOSE_WITHIN).await;
                });
            }
            return;
        };
        stage.renewing = false;
        let pullers = match answer {
            Ok(pullers) => pullers,
            Err(error) => {
                tracing::error!(dp_rank = %self.own.dp_rank, %error, "quarantine not ended: no new agents");
                self.timers.set(&Wake::Recycle, Some(Instant::now() + PAUSE));
                return;
            }
        };
        let mut agents = Vec::with_capacity(pullers.len());
        for (shard, puller) in stage.session.shards.iter_mut().zip(pullers) {
            agents.push(std::mem::replace(&mut shard.pull, puller).fabric);
            add(&self.shared.counters.recycled_agents, 1);
        }
        stage.outgoing.insert(stage.generation, Outgoing { agents, closing: false });
        stage.generation = stage.generation.saturating_add(1);
        stage.peers.clear();
        tracing::info!(dp_rank = %self.own.dp_rank, generation = stage.generation, "new pull agents have taken over");
        // Whoever has not begun to read reads by the new agents, which know nobody yet.
        let mut waiting = Vec::new();
        for (transfer, active) in &mut stage.active {
            if matches!(active.state, State::Queued(_) | State::AwaitingPeer(_)) {
                active.peer = None;
                waiting.push(transfer.clone());
            }
        }
        for transfer in waiting {
            self.connect(&transfer);
        }
    }

    fn close_outgoing(&mut self, now: Instant) {
        let Some(stage) = &mut self.stage else { return };
        let session = stage.id().clone();
        for (generation, outgoing) in &mut stage.outgoing {
            let needed = |active: &Active| active.generation() == Some(*generation) && uses_agents(active, now);
            if outgoing.closing || stage.active.values().any(needed) {
                continue;
            }
            outgoing.closing = true;
            let (closing, events) = (outgoing.agents.clone(), self.events.clone());
            let agents = self.own.builder.agents.clone();
            let (session, generation) = (session.clone(), *generation);
            self.shared.tasks.spawn(async move {
                let quiet = agents.close(closing, CLOSE_WITHIN).await != Closed::Stuck;
                jobs::report(&events, Event::Gone { session, generation, quiet }).await;
            });
        }
    }

    /// A generation of agents is gone, or cannot be destroyed.
    pub(super) fn on_gone(&mut self, session: &EngineId, generation: u64, quiet: bool) {
        let Some(stage) = self.stage.as_mut().filter(|stage| stage.id() == session) else { return };
        let sets = stage.quarantine.remove(&generation).unwrap_or_default();
        let slots: u32 = sets.iter().map(SlotSet::count).sum();
        stage.outgoing.remove(&generation);
        if quiet {
            tracing::info!(dp_rank = %self.own.dp_rank, slots, generation, "quarantine ended: the pull agents are gone");
            sets.into_iter().for_each(|set| self.release(set));
        } else {
            stage.stuck.insert(generation);
            sets.into_iter().for_each(|set| stage.slots.quarantine(set));
            self.give_up_reads(generation);
        }
    }

    /// Nobody will say how the reads of an agent that cannot be destroyed end.
    fn give_up_reads(&mut self, generation: u64) {
        let Some(stage) = &self.stage else { return };
        let of_it = stage.active.iter().filter(|(_, active)| active.generation() == Some(generation));
        let transfers: Vec<_> = of_it.map(|(transfer, _)| transfer.clone()).collect();
        for transfer in transfers {
            for shard in (0..self.shared.config.tp_size).map(TpRank) {
                self.drive(&transfer, E::ShardFailed { shard, code: 0, quiet: false });
            }
        }
    }

    /// Sets a failed read's slots aside until the agents that may still write them are gone.
    pub(super) fn quarantine(&mut self, transfer: &TransferId) {
        let Some(stage) = &mut self.stage else { return };
        let Some(active) = stage.active.get_mut(transfer) else { return };
        let generation = active.generation().unwrap_or(stage.generation);
        let Some(slots) = active.slots.take() else { return };
        let bytes = stage.slot_bytes().saturating_mul(u64::from(slots.count()));
        let stuck = stage.stuck.contains(&generation);
        if generation != stage.generation && !stage.outgoing.contains_key(&generation) && !stuck {
            // The read ended because its agent was destroyed.
            return self.release(slots);
        }
        add(&self.shared.counters.quarantined_bytes, bytes);
        tracing::warn!(dp_rank = %self.own.dp_rank, transfer_id = %transfer, bytes, "staging in quarantine after a failed read");
        if stuck {
            stage.slots.quarantine(slots);
        } else {
            stage.quarantine.entry(generation).or_default().push(slots);
        }
    }
}

fn renewal_is_due(stage: &Stage, now: Instant) -> bool {
    let usage = stage.slots.usage();
    let fresh = stage.quarantined_by(stage.generation);
    let hangs = |active: &Active| active.generation() == Some(stage.generation) && hangs(active, now);
    fresh > 0 && (usage.waiting > 0 || fresh >= (usage.capacity / SHARE).max(1)) || stage.active.values().any(hangs)
}

/// Whether an unwanted read goes on for so long that only the end of its agent ends it.
fn hangs(active: &Active, now: Instant) -> bool {
    let since = active.marks.quiescing.filter(|_| matches!(active.state, State::Quiescing { .. }));
    since.is_some_and(|since| now >= since + QUIESCE_WITHIN)
}

/// Whether a transfer has something to do with its pull agents that is worth waiting for.
fn uses_agents(active: &Active, now: Instant) -> bool {
    match active.state {
        State::InFlight { .. } | State::AwaitingDigest { .. } | State::Verifying { .. } | State::Landed { .. } => true,
        State::Quiescing { .. } => !hangs(active, now),
        State::Queued(_) | State::AwaitingPeer(_) | State::Done { .. } | State::Failed(_) => false,
    }
}

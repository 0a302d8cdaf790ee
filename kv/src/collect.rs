//! From landed to freed: a slot set in staging until the decode rank has read it.
//!
//! Invariant **C**: it is freed only by (1) the done notifications of every TP shard of the rank it was staged for,
//! (2) the router's word that the decode leg has ended, followed by a quiet period without heartbeats, or (3) a claim that
//! lapsed while the decode engine sent no heartbeat for a whole lease. Until then a decode may read it at any moment.

use std::time::{Duration, Instant};

use crate::ids::TpRank;
use crate::shards::ShardSet;

/// The periods that collection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long one claim of the router lasts (`collect_by_ms`).
    pub claim: Duration,
    /// The decode engine's lease: it sends a heartbeat every sixth of it while a request waits or loads.
    pub lease: Duration,
}

impl Terms {
    /// How long nothing may be heard after the router's word: two heartbeats.
    pub fn quiet(&self) -> Duration {
        self.lease / 3
    }
}

/// Where a landed slot set stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The decode rank may read at any moment.
    Waiting {
        /// Shards that have not said "done".
        missing: ShardSet,
        /// Until when the router has said that its decode leg is open.
        claimed_until: Instant,
        /// The last heartbeat, or the landing.
        heard_at: Instant,
    },
    /// The router's decode leg has ended; the engine may still be reading for it.
    Ending {
        /// Shards that have not said "done".
        missing: ShardSet,
        /// The last heartbeat, or the router's word.
        heard_at: Instant,
    },
    /// The slots are free again.
    Freed(How),
}

/// What freed a slot set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Every shard of the right rank has read it.
    Collected,
    /// The router's decode leg ended and the engine fell silent.
    Finished,
    /// Neither router nor engine wanted it any more.
    Lapsed,
}

/// What happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The decode rank that it was staged for has read this shard.
    Done(TpRank),
    /// The decode engine still wants it.
    Beat,
    /// The router's decode leg is still open.
    Claim,
    /// The router's decode leg has ended.
    Finish,
    /// Time passed.
    Tick,
}

/// Whether the slots must be given back now. Never twice for one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing to do.
    Keep,
    /// Give the slots back.
    Release,
}

impl State {
    /// A slot set of `shards` shards that has just landed. The receipt is its first claim.
    pub fn landed(terms: &Terms, shards: u16, now: Instant) -> Self {
        State::Waiting { missing: ShardSet::all(shards), claimed_until: now + terms.claim, heard_at: now }
    }

    /// The one place that decides when a landed slot set is free.
    #[must_use]
    pub fn step(self, event: Event, terms: &Terms, now: Instant) -> (Self, Effect) {
        let keep = |state| (state, Effect::Keep);
        let free = |how| (State::Freed(how), Effect::Release);
        match self {
            State::Waiting { mut missing, claimed_until, heard_at } => match event {
                Event::Done(shard) => {
                    missing.take(shard);
                    if missing.is_empty() {
                        free(How::Collected)
                    } else {
                        keep(State::Waiting { missing, claimed_until, heard_at: now })
                    }
                }
                Event::Beat => keep(State::Waiting { missing, claimed_until, heard_at: now }),
                Event::Claim => keep(State::Waiting { missing, claimed_until: now + terms.claim, heard_at }),
                Event::Finish => keep(State::Ending { missing, heard_at: now }),
                Event::Tick if now >= claimed_until && now >= heard_at + terms.lease => free(How::Lapsed),
                Event::Tick => keep(self),
            },
            State::Ending { mut missing, heard_at } => match event {
                Event::Done(shard) => {
                    missing.take(shard);
                    if missing.is_empty() {
                        free(How::Collected)
                    } else {
                        keep(State::Ending { missing, heard_at: now })
                    }
                }
                Event::Beat => keep(State::Ending { missing, heard_at: now }),
                Event::Tick if now >= heard_at + terms.quiet() => free(How::Finished),
                Event::Claim | Event::Finish | Event::Tick => keep(self),
            },
            State::Freed(_) => keep(self),
        }
    }

    /// When a [`Event::Tick`] will free it, if nothing else happens.
    pub fn next_tick(&self, terms: &Terms) -> Option<Instant> {
        match self {
            State::Waiting { claimed_until, heard_at, .. } => Some((*claimed_until).max(*heard_at + terms.lease)),
            State::Ending { heard_at, .. } => Some(*heard_at + terms.quiet()),
            State::Freed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::at;

    const TERMS: Terms = Terms { claim: Duration::from_secs(10), lease: Duration::from_secs(30) };

    fn run(shards: u16, events: &[(u64, Event)]) -> (State, u32) {
        let mut state = State::landed(&TERMS, shards, at(0));
        let mut released = 0;
        for (time, event) in events {
            let (next, effect) = state.step(*event, &TERMS, at(*time));
            state = next;
            released += u32::from(effect == Effect::Release);
        }
        (state, released)
    }

    #[test]
    fn the_last_shard_frees_it_and_repeated_notifications_count_once() {
        let (state, released) = run(2, &[(1, Event::Done(TpRank(0))), (2, Event::Done(TpRank(0)))]);
        assert!(matches!(state, State::Waiting { .. }));
        assert_eq!(released, 0);
        let done = [(1, Event::Done(TpRank(0))), (2, Event::Done(TpRank(1))), (3, Event::Done(TpRank(1)))];
        assert_eq!(run(2, &done), (State::Freed(How::Collected), 1));
    }

    #[test]
    fn an_open_decode_leg_keeps_it_however_late_the_engine_is() {
        let claims: Vec<_> = (0..100).flat_map(|n| [(n * 9_000, Event::Claim), (n * 9_000, Event::Tick)]).collect();
        assert!(matches!(run(1, &claims), (State::Waiting { .. }, 0)));
    }

    #[test]
    fn the_receipt_is_the_first_claim() {
        let terms = Terms { claim: Duration::from_secs(40), lease: Duration::from_secs(30) };
        let state = State::landed(&terms, 1, at(0));
        assert_eq!(state.step(Event::Tick, &terms, at(39_999)), (state, Effect::Keep));
        assert_eq!(state.next_tick(&terms), Some(at(40_000)));
        assert_eq!(state.step(Event::Tick, &terms, at(40_000)), (State::Freed(How::Lapsed), Effect::Release));
    }

    #[test]
    fn with_the_router_dead_heartbeats_keep_it_and_silence_frees_it_after_a_lease() {
        let beats: Vec<_> = (0..100).flat_map(|n| [(n * 5_000, Event::Beat), (n * 5_000, Event::Tick)]).collect();
        assert!(matches!(run(1, &beats), (State::Waiting { .. }, 0)));
        assert!(matches!(run(1, &[(29_999, Event::Tick)]), (State::Waiting { .. }, 0)));
        assert_eq!(run(1, &[(30_000, Event::Tick)]), (State::Freed(How::Lapsed), 1));
    }

    #[test]
    fn after_the_router_s_word_a_quiet_period_passes_first() {
        let end = [(1_000, Event::Finish), (10_999, Event::Tick)];
        assert!(matches!(run(1, &end), (State::Ending { .. }, 0)));
        let end = [(1_000, Event::Finish), (6_000, Event::Beat), (11_000, Event::Tick), (16_000, Event::Tick)];
        assert_eq!(run(1, &end), (State::Freed(How::Finished), 1));
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u16..4).prop_map(|shard| Event::Done(TpRank(shard))),
            Just(Event::Beat),
            Just(Event::Claim),
            Just(Event::Finish),
            Just(Event::Tick),
        ]
    }

    proptest! {
        /// Invariant C: whoever frees it had one of the three reasons, and it is freed once.
        #[test]
        fn it_is_freed_once_and_only_for_a_reason(history in prop::collection::vec((event(), 0u64..20_000), 1..60)) {
            let mut state = State::landed(&TERMS, 2, at(0));
            let (mut now, mut released) = (0, 0);
            let (mut done, mut heard, mut claimed, mut finished) = ([false; 2], 0u64, 10_000u64, None::<u64>);
            for (event, pause) in history {
                now += pause;
                let was_freed = matches!(state, State::Freed(_));
                let (next, effect) = state.step(event, &TERMS, at(now));
                match event {
                    Event::Done(shard) => { if let Some(flag) = done.get_mut(usize::from(shard.0)) { *flag = true; } heard = now; }
                    Event::Beat => heard = now,
                    Event::Claim => claimed = now + 10_000,
                    Event::Finish => { finished.get_or_insert(now); }
                    Event::Tick => {}
                }
                if effect == Effect::Release {
                    released += 1;
                    prop_assert!(!was_freed);
                    let collected = done.iter().all(|flag| *flag);
                    let ended = finished.is_some_and(|at| now >= at.max(heard) + 10_000);
                    let lapsed = now >= claimed && now >= heard + 30_000;
                    prop_assert!(collected || ended || lapsed, "{event:?} freed it for no reason");
                }
                state = next;
            }
            prop_assert!(released <= 1);
        }

        /// Whatever happened, it is freed in the end.
        #[test]
        fn silence_frees_it(history in prop::collection::vec((event(), 0u64..20_000), 0..30)) {
            let mut state = State::landed(&TERMS, 2, at(0));
            let mut now = 0;
            for (event, pause) in history {
                now += pause;
                state = state.step(event, &TERMS, at(now)).0;
            }
            if let Some(due) = state.next_tick(&TERMS) {
                state = state.step(Event::Tick, &TERMS, due).0;
            }
            prop_assert!(matches!(state, State::Freed(_)), "{state:?}");
        }
    }
}

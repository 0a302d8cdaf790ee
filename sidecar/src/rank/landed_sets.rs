//! Landed slot sets by the request that collects them. How many of them still wait for a decode is counted as it changes: there may be
//! thousands, and the rank is shown many times a second.

use std::collections::BTreeMap;

use kv::collect::{Effect, Event, State, Terms};
use kv::ids::{EngineRequestId, TransferId};
use kv::slots::SlotSet;
use tokio::time::Instant;

/// Slots that D may read at any moment.
#[derive(Debug)]
pub(super) struct LandedSlots {
    /// The machine; changed by [`LandedSets::step`].
    state: State,
    /// Which transfer they came by.
    pub transfer: TransferId,
    /// The slots.
    pub slots: SlotSet,
    /// When.
    pub landed_at: Instant,
    /// D's first heartbeat or notification.
    pub first_sign: Option<Instant>,
}

impl LandedSlots {
    /// Slots that have just landed.
    pub(super) fn new(state: State, transfer: TransferId, slots: SlotSet, landed_at: Instant) -> Self {
        Self { state, transfer, slots, landed_at, first_sign: None }
    }

    /// The machine's state.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether its decode leg may still be open.
    fn is_awaited(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }
}

/// All of a session's.
#[derive(Debug, Default)]
pub(super) struct LandedSets {
    sets: BTreeMap<EngineRequestId, LandedSlots>,
    awaited: usize,
}

impl LandedSets {
    pub(super) fn insert(&mut self, request: EngineRequestId, landed: LandedSlots) {
        self.awaited += usize::from(landed.is_awaited());
        if let Some(before) = self.sets.insert(request, landed) {
            self.awaited -= usize::from(before.is_awaited());
        }
    }

    pub(super) fn remove(&mut self, request: &EngineRequestId) -> Option<LandedSlots> {
        let removed = self.sets.remove(request)?;
        self.awaited -= usize::from(removed.is_awaited());
        Some(removed)
    }

    pub(super) fn get(&self, request: &EngineRequestId) -> Option<&LandedSlots> {
        self.sets.get(request)
    }

    pub(super) fn get_mut(&mut self, request: &EngineRequestId) -> Option<&mut LandedSlots> {
        self.sets.get_mut(request)
    }

    /// Feeds one event to a set's machine: its new state, and what is to be done.
    pub(super) fn step(
        &mut self,
        request: &EngineRequestId,
        event: Event,
        terms: &Terms,
        now: Instant,
    ) -> Option<(State, Effect)> {
        let landed = self.sets.get_mut(request)?;
        self.awaited -= usize::from(landed.is_awaited());
        let (state, effect) = landed.state.step(event, terms, now.into_std());
        landed.state = state;
        self.awaited += usize::from(landed.is_awaited());
        Some((state, effect))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&EngineRequestId, &LandedSlots)> {
        self.sets.iter()
    }

    /// All of them, taken out.
    pub(super) fn take(&mut self) -> BTreeMap<EngineRequestId, LandedSlots> {
        self.awaited = 0;
        std::mem::take(&mut self.sets)
    }

    pub(super) fn len(&self) -> usize {
        self.sets.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Those whose decode leg may still be open. One that is only waiting for its quiet period to pass will not be reused by a process that
    /// ends, and no text depends on it.
    pub(super) fn awaited(&self) -> usize {
        self.awaited
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kv::ids::TpRank;
    use kv::slots::{Ask, Slots};

    use super::*;

    #[test]
    fn those_that_are_awaited_are_counted_whatever_becomes_of_them() {
        let terms = Terms { claim: Duration::from_secs(1), lease: Duration::from_secs(3) };
        let (mut sets, mut slots, now) = (LandedSets::default(), Slots::new(8), Instant::now());
        let request = |number: u32| EngineRequestId::new(format!("r-{number}"));
        for number in 0..4 {
            let Ask::Granted(granted) = slots.ask(number, 1, now.into_std()) else { panic!("there is room") };
            let state = State::landed(&terms, 1, now.into_std());
            sets.insert(request(number), LandedSlots::new(state, TransferId::new("t"), granted, now));
        }
        let counted = |sets: &LandedSets| sets.iter().filter(|(_, landed)| landed.is_awaited()).count();
        assert_eq!((sets.awaited(), counted(&sets)), (4, 4));
        for event in [Event::Beat, Event::Claim, Event::Finish, Event::Finish] {
            sets.step(&request(0), event, &terms, now).unwrap();
        }
        assert_eq!((sets.awaited(), counted(&sets)), (3, 3));
        assert!(matches!(sets.step(&request(1), Event::Done(TpRank(0)), &terms, now), Some((_, Effect::Release))));
        assert_eq!((sets.awaited(), counted(&sets)), (2, 2));
        for number in [0, 1, 2, 2, 9] {
            sets.remove(&request(number));
        }
        assert_eq!((sets.awaited(), counted(&sets), sets.len()), (1, 1, 1));
        assert_eq!((sets.take().len(), sets.awaited(), sets.is_empty()), (1, 0, true));
    }
}

//! Tests of the allocator, the property ones against a plain list of owners.

use proptest::prelude::*;

use super::*;
use crate::testing::at;

fn granted(ask: Ask) -> SlotSet {
    match ask {
        Ask::Granted(set) => set,
        other @ (Ask::Queued | Ask::Exceeds { .. }) => panic!("not granted: {other:?}"),
    }
}

#[test]
fn a_fitting_run_is_preferred_over_a_long_one() {
    let mut slots: Slots<u8> = Slots::new(10);
    let [first, second, third] = [3, 2, 5].map(|need| granted(slots.ask(0, need, at(0))));
    slots.release(third);
    slots.release(first);
    let chosen = granted(slots.ask(0, 3, at(0)));
    assert_eq!(chosen.ids(), [SlotId(0), SlotId(1), SlotId(2)], "the run of 3, not the run of 5");
    slots.release(second);
    slots.release(chosen);
    assert_eq!(granted(slots.ask(0, 10, at(0))).count(), 10, "runs join again");
}

#[test]
fn free_runs_are_never_empty_and_join_from_either_side() {
    let mut slots: Slots<u8> = Slots::new(10);
    let [first, second] = [5, 5].map(|need| granted(slots.ask(0, need, at(0))));
    assert!(slots.free.is_empty(), "{:?}", slots.free);
    slots.release(second);
    slots.release(first);
    assert_eq!(slots.free, BTreeMap::from([(0, 10)]));
}

#[test]
fn waiters_are_served_in_order_even_if_a_later_one_would_fit() {
    let mut slots = Slots::new(4);
    let all = granted(slots.ask("holder", 4, at(0)));
    assert_eq!(slots.ask("large", 3, at(10)), Ask::Queued);
    assert_eq!(slots.ask("small", 1, at(10)), Ask::Queued);
    assert_eq!(slots.grant_next(), None);
    slots.release(all);
    let (key, large) = slots.grant_next().unwrap();
    assert_eq!((key, large.count()), ("large", 3));
    let (key, small) = slots.grant_next().unwrap();
    assert_eq!((key, small.count()), ("small", 1));
    slots.release(large);
    slots.release(small);
    assert_eq!(slots.usage(), Usage { capacity: 4, free: 4, ..Usage::default() });
}

#[test]
fn a_newcomer_does_not_overtake_the_queue() {
    let mut slots = Slots::new(4);
    let held = granted(slots.ask("holder", 2, at(0)));
    assert_eq!(slots.ask("large", 3, at(10)), Ask::Queued);
    assert_eq!(slots.ask("small", 1, at(10)), Ask::Queued);
    slots.release(held);
}

#[test]
fn waiting_ends_at_its_deadline_or_when_withdrawn() {
    let mut slots = Slots::new(1);
    let held = granted(slots.ask("holder", 1, at(0)));
    for (key, until) in [("b", 20), ("a", 10), ("c", 30)] {
        assert_eq!(slots.ask(key, 1, at(until)), Ask::Queued);
    }
    assert_eq!(slots.next_expiry(), Some(at(10)));
    assert_eq!(slots.expire_next(at(20)), Some("b"));
    assert_eq!(slots.expire_next(at(20)), Some("a"));
    assert_eq!(slots.expire_next(at(20)), None);
    assert!(slots.withdraw(&"c"));
    assert!(!slots.withdraw(&"c"));
    slots.release(held);
    assert_eq!(slots.grant_next(), None);
}

#[test]
fn more_than_the_arena_is_refused_at_once_even_while_others_wait() {
    let mut slots: Slots<u8> = Slots::new(2);
    assert_eq!(slots.ask(0, 3, at(10)), Ask::Exceeds { capacity: 2 });
}

#[test]
fn quarantined_slots_come_back_only_when_quarantine_ends() {
    let mut slots = Slots::new(2);
    let set = granted(slots.ask("a", 2, at(0)));
    slots.quarantine(set);
    assert_eq!(slots.ask("b", 1, at(10)), Ask::Queued);
    assert_eq!(slots.grant_next(), None);
    assert_eq!(slots.usage().quarantined, 2);
    assert_eq!(slots.end_quarantine(), 2);
    let (_, set) = slots.grant_next().unwrap();
    slots.release(set);
    assert_eq!(slots.usage().free, 2);
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u32),
    Release(usize),
    Quarantine(usize),
    EndQuarantine,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u32..8).prop_map(Step::Ask),
        3 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Quarantine),
        1 => Just(Step::EndQuarantine),
    ]
}

proptest! {
    /// Invariant M for the arena: no slot has two owners, none is lost, a quarantined one is nobody's.
    #[test]
    fn every_slot_has_exactly_one_owner(steps in prop::collection::vec(step(), 1..200)) {
        const CAPACITY: u32 = 16;
        let mut slots: Slots<u32> = Slots::new(CAPACITY);
        let mut held: Vec<SlotSet> = Vec::new();
        let mut quarantined: Vec<SlotId> = Vec::new();
        for (key, step) in (0u32..).zip(steps) {
            match step {
                Step::Ask(need) => match slots.ask(key, need, at(1_000_000)) {
                    Ask::Granted(set) => { prop_assert_eq!(set.count(), need); held.push(set); }
                    Ask::Queued => { slots.withdraw(&key); }
                    Ask::Exceeds { .. } => prop_assert!(need > CAPACITY),
                },
                Step::Release(index) if !held.is_empty() => { let set = held.swap_remove(index % held.len()); slots.release(set); }
                Step::Quarantine(index) if !held.is_empty() => {
                    let set = held.swap_remove(index % held.len());
                    quarantined.extend(set.ids());
                    slots.quarantine(set);
                }
                Step::Release(_) | Step::Quarantine(_) => {}
                Step::EndQuarantine => { slots.end_quarantine(); quarantined.clear(); }
            }
            let mut owned: Vec<SlotId> = held.iter().flat_map(|set| set.ids().iter().copied()).chain(quarantined.iter().copied()).collect();
            let count = u32::try_from(owned.len()).unwrap();
            owned.sort_unstable();
            owned.dedup();
            prop_assert_eq!(u32::try_from(owned.len()).unwrap(), count, "a slot has two owners");
            let usage = slots.usage();
            prop_assert_eq!(usage.free + count, CAPACITY);
            prop_assert_eq!(usage.quarantined, u32::try_from(quarantined.len()).unwrap());
        }
    }
}

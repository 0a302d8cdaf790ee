//! Tests of the transfer machine: rows by hand, and properties against a model of staging and of a NIC that goes on
//! writing after a failure.

use proptest::prelude::*;

use super::*;
use crate::testing::{at, ms};

fn terms(shards: u16) -> Terms {
    let source = SourceDigest::NotWanted;
    Terms { lease: Lease::begun(ms(30_000), ms(0), at(0)), deadline: at(60_000), shards, source }
}

/// One shard whose digest is wanted.
fn verified() -> Terms {
    Terms { source: SourceDigest::Awaited, ..terms(1) }
}

/// Runs events through a fresh transfer of one shard.
fn run(events: &[(u64, Event)]) -> (State, Vec<Effect>) {
    run_with(terms(1), events)
}

fn run_with(terms: Terms, events: &[(u64, Event)]) -> (State, Vec<Effect>) {
    let mut state = State::new(terms);
    let mut effects = Vec::new();
    for (time, event) in events {
        let step = state.step(*event, at(*time));
        state = step.state;
        effects.extend_from_slice(step.effects);
    }
    (state, effects)
}

const LANDED: Event = E::ShardLanded { shard: TpRank(0), bytes: 100 };
const BROKE: Event = E::ShardFailed { shard: TpRank(0), code: -2, quiet: false };

#[test]
fn the_good_path_publishes_then_hands_over_then_tells_the_producer() {
    let (state, effects) =
        run(&[(1, E::StagingGranted), (2, E::PeerReady), (9, LANDED), (9, E::Verified), (10, E::Told { sent: true })]);
    assert_eq!(state, S::Done { bytes: 100, producer_told: true });
    assert_eq!(effects, [F::ConnectPeer, F::PostReads, F::Verify, F::Publish, F::HandOver, F::TellProducer]);
}

#[test]
fn only_an_end_is_terminal() {
    let events = [E::StagingGranted, E::PeerReady, LANDED, E::Verified];
    for steps in 0..=events.len() {
        let so_far: Vec<_> = (1..).zip(events.iter().copied().take(steps)).collect();
        assert!(!run(&so_far).0.is_terminal(), "after {so_far:?}");
    }
    assert!(run(&[(1, E::Cancel(Failure::Cancelled))]).0.is_terminal());
}

#[test]
fn success_after_the_lease_is_a_failure() {
    let (state, effects) = run(&[(1, E::StagingGranted), (2, E::PeerReady), (29_000, LANDED)]);
    assert_eq!(state, S::Failed(Failure::LeaseExpired));
    assert!(effects.ends_with(&[F::Publish, F::ReleaseSlots]));
}

#[test]
fn heartbeats_keep_the_lease() {
    let (state, _) = run(&[
        (1, E::StagingGranted),
        (2, E::PeerReady),
        (20_000, E::BeatSent(at(20_000))),
        (29_000, E::Tick),
        (35_000, LANDED),
        (35_000, E::Verified),
    ]);
    assert_eq!(state, S::Landed { bytes: 100 });
}

#[test]
fn a_heartbeat_that_may_have_got_out_after_the_end_revives_nothing() {
    // It was meant to leave in time; that it did is known only when the lease is over.
    let late = E::BeatSent(at(28_000));
    let (state, _) = run(&[(1, E::StagingGranted), (2, E::PeerReady), (29_000, late), (29_001, LANDED)]);
    assert_eq!(state, S::Failed(Failure::LeaseExpired));
}

#[test]
fn a_lease_that_ends_in_flight_answers_at_once_and_frees_only_after_the_read() {
    let (state, effects) = run(&[(1, E::StagingGranted), (2, E::PeerReady), (29_000, E::Tick)]);
    let running = ShardSet::all(1);
    assert_eq!(state, S::Quiescing { why: Failure::LeaseExpired, running, doubtful: false });
    assert_eq!(effects.last(), Some(&F::Publish));
    let step = state.step(LANDED, at(40_000));
    assert_eq!(step, go(S::Failed(Failure::LeaseExpired), &[F::ReleaseSlots]));
}

#[test]
fn a_failed_read_puts_its_slots_in_quarantine_but_a_refused_post_does_not() {
    let (state, effects) = run(&[(1, E::StagingGranted), (2, E::PeerReady), (3, BROKE)]);
    assert_eq!(state, S::Failed(Failure::Nixl(-2)));
    assert!(effects.ends_with(&[F::Publish, F::QuarantineSlots]));
    let refused = E::ShardFailed { shard: TpRank(0), code: -1, quiet: true };
    let (_, effects) = run(&[(1, E::StagingGranted), (2, E::PeerReady), (3, refused)]);
    assert!(effects.ends_with(&[F::Publish, F::ReleaseSlots]));
}

#[test]
fn a_read_that_was_never_posted_leaves_nothing_in_doubt_when_the_transfer_was_given_up_before() {
    let refused = E::ShardFailed { shard: TpRank(0), code: -1, quiet: true };
    let (state, _) = run(&[(1, E::StagingGranted), (2, E::PeerReady), (3, E::Cancel(Failure::Cancelled))]);
    assert_eq!(state.step(refused, at(4)), go(S::Failed(Failure::Cancelled), &[F::ReleaseSlots]));
}

#[test]
fn with_shards_the_first_failure_answers_and_the_last_read_frees() {
    let second = E::ShardLanded { shard: TpRank(1), bytes: 100 };
    let (state, effects) = run_with(terms(2), &[(1, E::StagingGranted), (2, E::PeerReady), (3, BROKE)]);
    assert!(matches!(state, S::Quiescing { why: Failure::Nixl(-2), doubtful: true, .. }));
    assert_eq!(effects.last(), Some(&F::Publish));
    assert_eq!(state.step(second, at(500)), go(S::Failed(Failure::Nixl(-2)), &[F::QuarantineSlots]));
}

#[test]
fn a_shard_that_reports_twice_counts_once() {
    let (state, _) = run_with(terms(2), &[(1, E::StagingGranted), (2, E::PeerReady), (3, LANDED), (4, LANDED)]);
    assert!(matches!(state, S::InFlight { bytes: 100, .. }), "{state:?}");
}

#[test]
fn giving_up_in_the_queue_withdraws_and_a_crossing_grant_is_given_back() {
    let (state, effects) = run(&[(1, E::Cancel(Failure::Cancelled)), (2, E::StagingGranted)]);
    assert_eq!(state, S::Failed(Failure::Cancelled));
    assert_eq!(effects, [F::WithdrawAsk, F::Publish, F::ReleaseSlots]);
}

#[test]
fn a_failed_notification_does_not_take_the_receipt_away() {
    let (state, effects) =
        run(&[(1, E::StagingGranted), (2, E::PeerReady), (3, LANDED), (3, E::Verified), (4, E::Told { sent: false })]);
    assert_eq!(state, S::Done { bytes: 100, producer_told: false });
    assert_eq!(effects.iter().filter(|effect| **effect == F::TellProducer).count(), 1);
}

#[test]
fn a_cancel_after_landing_changes_nothing() {
    let (state, _) = run(&[
        (1, E::StagingGranted),
        (2, E::PeerReady),
        (3, LANDED),
        (3, E::Verified),
        (4, E::Cancel(Failure::Cancelled)),
    ]);
    assert_eq!(state, S::Landed { bytes: 100 });
}

#[test]
fn bytes_that_are_first_wait_for_the_source_s_digests_and_the_other_way_round() {
    let digested = (5, E::SourceDigested);
    let all = [F::ConnectPeer, F::PostReads, F::Verify];
    for events in [
        [digested, (6, E::StagingGranted), (6, E::PeerReady), (9, LANDED)],
        [(1, E::StagingGranted), digested, (6, E::PeerReady), (9, LANDED)],
        [(1, E::StagingGranted), (2, E::PeerReady), digested, (9, LANDED)],
        [(1, E::StagingGranted), (2, E::PeerReady), (3, LANDED), digested],
    ] {
        let (state, effects) = run_with(verified(), &events);
        assert_eq!(state, S::Verifying { bytes: 100 }, "{events:?}");
        assert_eq!(effects, all, "{events:?}");
    }
}

#[test]
fn while_the_digests_are_awaited_heartbeats_keep_the_lease_and_its_end_is_the_transfer_s() {
    let landed = [(1, E::StagingGranted), (2, E::PeerReady), (3, LANDED)];
    let (state, _) = run_with(verified(), &landed);
    assert!(state.wants_beats().is_some());
    assert_eq!(state.next_tick(), Some(at(28_500)));
    let late = state.clone().step(E::SourceDigested, at(29_000));
    assert_eq!(late, go(S::Failed(Failure::LeaseExpired), &[F::Publish, F::ReleaseSlots]), "taken too late to count");
    let kept = state.step(E::BeatSent(at(20_000)), at(20_000)).state.step(E::SourceDigested, at(29_000));
    assert_eq!(kept, go(S::Verifying { bytes: 100 }, &[F::Verify]));
}

#[test]
fn digests_that_came_after_the_lease_do_not_count_for_bytes_that_land_later() {
    let (state, _) = run_with(verified(), &[(1, E::StagingGranted), (2, E::PeerReady), (28_600, E::SourceDigested)]);
    assert!(matches!(state, S::InFlight { terms: Terms { source: SourceDigest::Awaited, .. }, .. }), "{state:?}");
}

#[test]
fn without_the_source_s_digests_there_is_no_receipt() {
    let none = E::SourceUndigested;
    let (state, effects) = run_with(verified(), &[(1, none)]);
    assert_eq!(state, S::Failed(Failure::NoSourceDigest));
    assert_eq!(effects, [F::WithdrawAsk, F::Publish]);
    let (state, effects) = run_with(verified(), &[(1, E::StagingGranted), (2, E::PeerReady), (3, none)]);
    assert!(matches!(state, S::Quiescing { why: Failure::NoSourceDigest, .. }), "{state:?}");
    assert_eq!(effects.last(), Some(&F::Publish));
    let (_, effects) = run_with(verified(), &[(1, E::StagingGranted), (2, E::PeerReady), (3, LANDED), (4, none)]);
    assert!(effects.ends_with(&[F::Publish, F::ReleaseSlots]));
}

#[test]
fn a_digest_that_differs_frees_the_slots_and_tells_nobody() {
    let (state, effects) = run_with(
        verified(),
        &[(1, E::StagingGranted), (2, E::PeerReady), (3, LANDED), (4, E::SourceDigested), (5, E::DigestMismatch)],
    );
    assert_eq!(state, S::Failed(Failure::DigestMismatch));
    assert_eq!(effects, [F::ConnectPeer, F::PostReads, F::Verify, F::Publish, F::ReleaseSlots]);
}

/// What the outside world may still do, for the properties.
#[derive(Debug, Default)]
struct World {
    slots_held: bool,
    slots_given_up: u32,
    writing: u64,
    in_doubt: bool,
    asked_peer: bool,
    digest_asked: bool,
    digested: bool,
    verifying: bool,
    telling: bool,
    published: u32,
    told: u32,
    landed_at: Option<Instant>,
}

const SHARDS: u16 = 3;

impl World {
    /// Turns a random number into an event that the world could send now.
    fn event(&mut self, pick: u8, now: Instant) -> Event {
        let shard = TpRank(u16::from(pick / 16) % SHARDS);
        let bit = 1u64 << shard.0;
        match pick % 11 {
            0 if !self.slots_held && self.slots_given_up == 0 => {
                self.slots_held = true;
                E::StagingGranted
            }
            1 if !self.slots_held && self.slots_given_up == 0 => E::StagingRefused(Failure::StagingFull),
            2 if self.asked_peer => E::PeerReady,
            3 if self.asked_peer && pick > 200 => E::PeerFailed,
            4 | 5 if self.writing & bit != 0 => {
                self.writing &= !bit;
                self.landed_at = Some(now);
                E::ShardLanded { shard, bytes: 10 }
            }
            6 if self.writing & bit != 0 => {
                self.writing &= !bit;
                let quiet = pick > 128;
                self.in_doubt |= !quiet;
                E::ShardFailed { shard, code: -2, quiet }
            }
            7 if self.verifying => {
                self.verifying = false;
                if pick > 230 { E::DigestMismatch } else { E::Verified }
            }
            8 if self.telling => {
                self.telling = false;
                E::Told { sent: pick > 50 }
            }
            9 if pick > 240 => E::Cancel(Failure::Cancelled),
            9 => E::BeatSent(now),
            10 if self.digest_asked => {
                self.digest_asked = false;
                self.digested = pick < 230;
                if self.digested { E::SourceDigested } else { E::SourceUndigested }
            }
            _ => E::Tick,
        }
    }

    fn apply(&mut self, effects: &[Effect]) -> Result<(), TestCaseError> {
        for effect in effects {
            match effect {
                F::WithdrawAsk => prop_assert!(!self.slots_held, "withdrew slots that it holds"),
                F::ConnectPeer => self.asked_peer = true,
                F::PostReads => {
                    prop_assert!(self.slots_held);
                    self.writing = (1 << SHARDS) - 1;
                }
                F::Verify => self.verifying = true,
                F::Publish => self.published += 1,
                F::TellProducer => {
                    self.telling = true;
                    self.told += 1;
                }
                F::HandOver | F::ReleaseSlots => {
                    prop_assert!(self.writing == 0 && !self.in_doubt, "M: released under the NIC by {effect:?}");
                    self.give_up_slots()?;
                }
                F::QuarantineSlots => {
                    prop_assert!(self.writing == 0);
                    self.give_up_slots()?;
                }
            }
        }
        Ok(())
    }

    fn give_up_slots(&mut self) -> Result<(), TestCaseError> {
        prop_assert!(self.slots_held, "M: gave up slots that it does not hold");
        self.slots_held = false;
        self.slots_given_up += 1;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn invariants_m_l_n_p_and_t_hold_for_every_history(
        wanted in any::<bool>(),
        picks in prop::collection::vec((any::<u8>(), 0u64..3_000), 1..60),
    ) {
        let lease = Lease::begun(ms(20_000), ms(0), at(0));
        let source = if wanted { SourceDigest::Awaited } else { SourceDigest::NotWanted };
        let mut state = State::new(Terms { lease, deadline: at(50_000), shards: SHARDS, source });
        let (mut world, mut now) = (World { digest_asked: wanted, ..World::default() }, 0);
        let mut lease_model = lease;
        for (pick, pause) in picks {
            now += pause;
            let event = world.event(pick, at(now));
            if let E::BeatSent(sent) = event
                && state.wants_beats().is_some()
            {
                lease_model.beat(sent);
            }
            let before = state.clone();
            let step = state.step(event, at(now));
            world.apply(step.effects)?;
            state = step.state;
            let arrived = matches!(state, S::Verifying { .. } | S::AwaitingDigest { .. });
            if arrived && matches!(before, S::InFlight { .. }) {
                prop_assert!(!lease_model.is_over(at(now)), "L: landed after the lease");
            }
            if matches!(state, S::Verifying { .. }) && !matches!(before, S::Verifying { .. }) {
                prop_assert!(!wanted || world.digested, "D: verified without the source's digests");
                prop_assert!(!lease_model.is_over(at(now)), "D: verified against digests of after the lease");
            }
            prop_assert!(world.published <= 1, "P: published twice");
            prop_assert!(world.told <= 1, "N: told twice");
            let receipt = matches!(state, S::Landed { .. } | S::Done { .. });
            prop_assert_eq!(receipt, world.told == 1, "N: told exactly when there is a receipt");
        }
        // T: every read ends, every question is answered, time passes.
        for shard in 0..SHARDS {
            if world.writing & (1 << shard) != 0 {
                world.writing &= !(1 << shard);
                let step = state.step(E::ShardLanded { shard: TpRank(shard), bytes: 10 }, at(now));
                world.apply(step.effects)?;
                state = step.state;
            }
        }
        if std::mem::take(&mut world.digest_asked) {
            let step = state.step(E::SourceDigested, at(now));
            world.apply(step.effects)?;
            state = step.state;
        }
        for event in [E::Tick, E::Verified, E::Told { sent: true }] {
            let step = state.step(event, at(now + 1_000_000));
            world.apply(step.effects)?;
            state = step.state;
        }
        prop_assert!(state.is_terminal(), "T: {state:?}");
        prop_assert_eq!(world.published, 1, "P: not published");
        prop_assert!(!world.slots_held, "M: slots leaked");
    }
}

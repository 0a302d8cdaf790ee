//! Quiet means: for the time that was asked for, without a break, and never for ever on a figure that says nothing.

use std::collections::BTreeMap;

use kv::ids::LocalRank;

use super::*;
use crate::model::{RankLoad, RankState};

const LEASE: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_secs(5);

fn rank(handles: u32) -> RankSnapshot {
    RankSnapshot { state: RankState::Ready, handles, ..RankSnapshot::unknown(LocalRank(0), 3, 1) }
}

fn look(running: u64, kv_usage: f64) -> Looked {
    let load = RankLoad { running, kv_usage, ..RankLoad::default() };
    Looked { number: 1, loads: Some(BTreeMap::from([(3, load)])) }
}

#[expect(clippy::disallowed_methods, reason = "a start to count from")]
fn start() -> Instant {
    Instant::from_std(std::time::Instant::now())
}

/// A wait, and a clock in seconds.
struct Wait(Waiting, Instant);

impl Wait {
    fn new() -> Self {
        Self(Waiting::new(LEASE, STEADY, None), start())
    }

    fn at(&mut self, seconds: u64, looked: &Looked, handles: u32) -> bool {
        self.0.see(looked, &[Arc::new(rank(handles))], self.1 + Duration::from_secs(seconds))
    }
}

#[test]
fn it_has_been_quiet_for_the_time_that_was_asked_for_without_a_break() {
    let mut wait = Wait::new();
    assert!(!wait.at(0, &look(0, 0.0), 0));
    assert!(!wait.at(4, &look(0, 0.0), 0));
    assert!(!wait.at(5, &look(1, 0.1), 0), "a request came");
    assert!(!wait.at(6, &look(0, 0.0), 0));
    assert!(!wait.at(10, &look(0, 0.0), 0));
    assert!(wait.at(11, &look(0, 0.0), 0));
}

#[test]
fn whatever_is_in_the_way_is_named() {
    for (looked, handles, words) in [
        (look(2, 0.0), 0, "2 requests run and 0 wait"),
        (look(0, 0.0), 7, "7 requests have blocks that somebody is to read"),
        (look(0, 0.5), 0, "50.0 % of its KV cache are in use"),
        (Looked { number: 1, loads: None }, 0, "its engine does not say what it does"),
    ] {
        let mut wait = Wait::new();
        assert!(!wait.at(0, &looked, handles) && !wait.at(9, &looked, handles));
        let expected = vec![InUse { dp_rank: DpRank(3), reasons: vec![words.to_owned()] }];
        assert_eq!(wait.0.in_use(), expected);
    }
}

#[test]
fn a_cache_that_stays_filled_means_nothing_once_no_lease_can_be_left() {
    let mut wait = Wait::new();
    assert!(!wait.at(0, &look(1, 0.2), 0));
    assert!(!wait.at(1, &look(0, 0.2), 0));
    assert!(!wait.at(30, &look(0, 0.2), 0), "29 s after the last request its lease may run");
    assert!(!wait.at(31, &look(0, 0.2), 0));
    assert!(wait.at(36, &look(0, 0.2), 0));
    assert!(!wait.at(37, &look(0, 0.2), 1), "a handle starts the time anew");
    assert!(!wait.at(66, &look(0, 0.2), 0));
}

#[test]
fn of_an_engine_that_had_nothing_to_do_for_a_lease_nobody_waits_for_an_old_figure() {
    let (start, mut idle) = (start(), Idle::default());
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut see = |seconds, looked: &Looked, handles| {
        idle.see(looked, &[Arc::new(rank(handles))], at(seconds));
        idle.since()
    };
    assert_eq!(see(0, &look(1, 0.2), 0), None, "a request runs");
    assert_eq!(see(1, &look(0, 0.2), 0), Some(at(1)));
    assert_eq!(see(9, &look(0, 0.2), 0), Some(at(1)));
    assert_eq!(see(10, &look(0, 0.3), 0), None, "it has made a step in between");
    assert_eq!(see(11, &look(0, 0.3), 0), Some(at(11)));
    assert_eq!(see(12, &look(0, 0.3), 1), None, "somebody is to read");
    assert_eq!(see(13, &Looked { number: 1, loads: None }, 0), None, "it does not say");
    assert_eq!(see(14, &look(0, 0.3), 0), None, "it says again, and nobody knows what was in between");
    let since = see(15, &look(0, 0.3), 0);
    assert_eq!(since, Some(at(15)));
    let waited = |asked: u64, since| {
        let mut wait = Wait(Waiting::new(LEASE, STEADY, since), start);
        (asked..).find(|seconds| wait.at(*seconds, &look(0, 0.3), 0)).map(|seconds| seconds - asked)
    };
    assert_eq!(waited(600, since), Some(5), "only as long as it is to be quiet");
    assert_eq!(waited(35, since), Some(10 + 5), "until the lease is over");
    assert_eq!(waited(600, None), Some(30 + 5));
}

//! Wakes on a connection, breakers, budgets, buckets and places of the router.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::thread;
use tokio::time::Instant;

use crate::every_order;
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering};

#[allow(dead_code, reason = "the file is the crate's")]
#[path = "../../../router/src/breaker.rs"]
mod breaker;
#[allow(dead_code, reason = "the file is the crate's")]
#[path = "../../../router/src/keys/bucket.rs"]
mod bucket;
#[path = "../../../router/src/ladder/budget.rs"]
mod budget;
#[path = "../../../router/src/keys/places.rs"]
mod places;
#[path = "../../../router/src/upstream/turns.rs"]
mod turns;

use breaker::{Guard, Tuning};
use bucket::Bucket;
use budget::RetryBudget;
use places::Places;
use turns::Turns;

/// As `router::keys` has it.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: NonZeroU32,
    burst: NonZeroU32,
}

/// A task that sleeps until it is woken.
struct Task {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        *self.woken.lock() = true;
        self.changed.notify_one();
    }
}

impl Task {
    /// Polls until it is ready. Loom finds a task that sleeps for ever.
    fn run(mut poll: impl FnMut(&mut Context<'_>) -> Poll<()>) {
        let task = Arc::new(Self { woken: Mutex::new(false), changed: Condvar::new() });
        let waker = Waker::from(Arc::clone(&task));
        while poll(&mut Context::from_waker(&waker)).is_pending() {
            let mut woken = task.woken.lock();
            while !*woken {
                task.changed.wait(&mut woken);
            }
            *woken = false;
        }
    }
}

#[test]
fn no_wake_between_a_connection_and_its_waiter_is_lost() {
    every_order(|| {
        let turns = Arc::new(Turns::default());
        let come = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let other = {
            let (come, waker) = (Arc::clone(&come), Waker::from(Arc::clone(&turns)));
            thread::spawn(move || {
                for one in &*come {
                    one.store(true, Ordering::Relaxed);
                    waker.wake_by_ref();
                }
            })
        };
        // Two answers, one after the other: each waits until what it waits for has come.
        for one in &*come {
            Task::run(|context| {
                turns.begin(context.waker());
                loop {
                    if one.load(Ordering::Relaxed) {
                        turns.end();
                        return Poll::Ready(());
                    }
                    if !turns.again() {
                        return Poll::Pending;
                    }
                }
            });
        }
        other.join().unwrap();
    });
}

const TUNING: Tuning = Tuning { failures: 1, successes: 1, first_wait_ms: 10, longest_wait_ms: 10, window_ms: 10 };

#[test]
fn one_probe_at_a_time_passes_a_breaker() {
    every_order(|| {
        let guard = Arc::new(Guard::new(TUNING));
        guard.fail(0, 1);
        let other = {
            let guard = Arc::clone(&guard);
            thread::spawn(move || guard.begin(10))
        };
        let passed = guard.begin(10);
        assert!(passed != other.join().unwrap());
    });
}

#[test]
fn what_a_breaker_shows_at_a_glance_is_what_it_is() {
    every_order(|| {
        let guard = Arc::new(Guard::new(TUNING));
        guard.fail(0, 1);
        let act = |act: fn(&Guard)| {
            let guard = Arc::clone(&guard);
            thread::spawn(move || act(&guard))
        };
        let others = [act(Guard::reconsider), act(|guard| guard.fail(1, 1))];
        others.into_iter().for_each(|other| other.join().unwrap());
        // The news of it came before or after the failure.
        assert_eq!(guard.admits(5), guard.as_str() == "half_open", "it is {}", guard.as_str());
    });
}

#[test]
fn a_request_earns_its_share_of_a_retry_once() {
    every_order(|| {
        let now = Instant::now();
        let budget = Arc::new(RetryBudget::new(100, 0, now));
        while budget.take(now) {}
        let other = {
            let budget = Arc::clone(&budget);
            thread::spawn(move || {
                budget.request();
                budget.request();
            })
        };
        let mut taken = u32::from(budget.take(now));
        other.join().unwrap();
        while budget.take(now) {
            taken += 1;
        }
        assert_eq!(taken, 2);
    });
}

#[test]
fn two_requests_do_not_spend_the_same_token() {
    every_order(|| {
        let one = NonZeroU32::MIN;
        let bucket = Arc::new(Bucket::new(Rate { per_second: one, burst: one }));
        let other = {
            let bucket = Arc::clone(&bucket);
            thread::spawn(move || bucket.spend_at(0).is_ok())
        };
        let spent = bucket.spend_at(0).is_ok();
        assert!(spent != other.join().unwrap());
        assert!(bucket.spend_at(1_000_000_000).is_ok());
    });
}

#[test]
fn a_key_s_place_has_one_request_and_nobody_is_refused_a_free_one() {
    let most = Some(NonZeroU32::MIN);
    every_order(move || {
        let places = Places::default();
        let before = places.take(most).unwrap();
        let other = {
            let places = places.clone();
            thread::spawn(move || places.take(most))
        };
        drop(before);
        // Whoever comes now finds the place free, or taken by the other one.
        let mine = places.take(most);
        let theirs = other.join().unwrap();
        assert!(mine.is_some() != theirs.is_some());
    });
}

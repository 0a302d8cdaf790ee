//! The agent's doorbell, large reads' turns, and the cores that they share.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use crate::every_order;
use crate::sync::{AtomicBool, AtomicUsize, Ordering};

#[allow(dead_code, unreachable_pub, reason = "the file is the crate's")]
#[path = "../../../nixl/src/lanes/cores.rs"]
mod cores;
#[path = "../../../nixl/src/agent/doorbell.rs"]
mod doorbell;
#[path = "../../../nixl/src/lanes/turn.rs"]
mod turn;

use cores::Cores;
use doorbell::Doorbell;
use turn::Turn;

#[test]
fn whatever_is_left_for_a_thread_wakes_it() {
    for (awake, limit) in [(0, None), (1, None), (0, Some(1)), (1, Some(1))] {
        every_order(move || {
            let bell = Arc::new(Doorbell::new(0));
            let ringers = [1, 2].map(|_| {
                let bell = Arc::clone(&bell);
                thread::spawn(move || {
                    *bell.lock() += 1;
                    bell.ring();
                })
            });
            let mut taken = 0;
            while taken < 2 {
                bell.wait(Duration::from_secs(awake), limit.map(Duration::from_secs), |left| *left == 0);
                taken += std::mem::take(&mut *bell.lock());
            }
            ringers.into_iter().for_each(|ringer| ringer.join().unwrap());
        });
    }
}

/// What threads have done, and what whoever worked last has seen of it.
#[derive(Default)]
struct Work {
    turn: Turn,
    done: [AtomicUsize; 3],
    seen: AtomicUsize,
    busy: AtomicBool,
}

impl Work {
    fn come(&self, which: usize) {
        self.done[which].store(1, Ordering::Relaxed);
        if !self.turn.come() {
            return;
        }
        loop {
            assert!(!self.busy.swap(true, Ordering::Relaxed), "two work at a time");
            let seen = self.done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
            self.seen.store(seen, Ordering::Relaxed);
            self.busy.store(false, Ordering::Relaxed);
            if self.turn.leave() {
                return;
            }
        }
    }
}

#[test]
fn of_a_read_in_pieces_one_thread_works_at_a_time_and_sees_every_piece_that_has_ended() {
    every_order(|| {
        let work = Arc::new(Work::default());
        let others = [1, 2].map(|which| {
            let work = Arc::clone(&work);
            thread::spawn(move || work.come(which))
        });
        work.come(0);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(work.seen.load(Ordering::Relaxed), 3, "somebody's end is not seen: the read would never end");
    });
}

#[test]
fn two_reads_at_a_time_share_the_cores_and_give_all_of_them_back() {
    every_order(|| {
        let cores = Cores::new(3);
        let other = {
            let cores = Arc::clone(&cores);
            thread::spawn(move || cores.take(2))
        };
        let one = cores.take(2);
        let two = other.join().unwrap();
        assert_eq!(one.count() + two.count(), 3);
        let other = thread::spawn(move || drop(two));
        drop(one);
        other.join().unwrap();
        assert_eq!(cores.take(3).count(), 3);
    });
}

//! What one rank has done, counted where the rank is: with its pod go its figures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Side;
use crate::trail::Leg;

/// One part of requests on one rank.
#[derive(Debug, Default)]
pub(crate) struct Part {
    served: AtomicU64,
    failed: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Part {
    /// It was done well, and took so long.
    pub(crate) fn serve(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.served.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(took, Ordering::Relaxed);
    }

    /// It failed.
    pub(crate) fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Of those that were done well, together.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }
}

/// All parts of requests on one rank.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    prefill: Part,
    transfer: Part,
    decode: Part,
}

impl Tally {
    /// The parts that ranks of a side have a share in.
    pub(crate) fn legs(side: Side) -> [Leg; 2] {
        match side {
            Side::Prefill => [Leg::Prefill, Leg::Transfer],
            Side::Decode => [Leg::Transfer, Leg::Decode],
        }
    }

    pub(crate) fn of(&self, leg: Leg) -> Option<&Part> {
        match leg {
            Leg::Prefill => Some(&self.prefill),
            Leg::Transfer => Some(&self.transfer),
            Leg::Decode => Some(&self.decode),
            Leg::Body | Leg::Queue | Leg::Choice | Leg::Backoff | Leg::Stream => None,
        }
    }
}

//! What the handles of an agent and its thread both see.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{clock, inbox::Inbox, transfers::Transfers};
use crate::{
    fabric::{Closed, FabricStats},
    region::Owner,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) inbox: Arc<Inbox>,
    pub(super) owner: Owner,
    born: Instant,
    /// When the current lap began, in ns after `born`; 0 while the thread waits.
    lap: AtomicU64,
    stats: Mutex<FabricStats>,
    ended: Mutex<Option<Closed>>,
    ended_changed: Condvar,
}

impl Shared {
    pub(super) fn new(inbox: Arc<Inbox>) -> Self {
        Self {
            inbox,
            owner: Owner::next(),
            born: clock::now(),
            lap: AtomicU64::new(0),
            stats: Mutex::default(),
            ended: Mutex::default(),
            ended_changed: Condvar::new(),
        }
    }

    fn since_birth(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn lap_begins(&self) {
        self.lap.store(self.since_birth().max(1), Ordering::Relaxed);
    }

    pub(super) fn lap_ends(&self, transfers: &Transfers, waiting: usize) {
        let mut stats = self.stats.lock();
        transfers.count(&mut stats);
        stats.notifications_waiting = waiting;
        drop(stats);
        self.lap.store(0, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> FabricStats {
        let lap = self.lap.load(Ordering::Relaxed);
        let alive = self.ended.lock().is_none();
        let running = (alive && lap != 0).then(|| Duration::from_nanos(self.since_birth().saturating_sub(lap)));
        FabricStats { alive, queued: self.inbox.queued(), lap: running, ..*self.stats.lock() }
    }

    /// The thread has ended.
    pub(super) fn end(&self, how: Closed, last: Option<FabricStats>) {
        if let Some(last) = last {
            *self.stats.lock() = last;
        }
        *self.ended.lock() = Some(how);
        self.ended_changed.notify_all();
    }

    /// How the thread ended; stuck when it has not within `limit`.
    pub(super) fn wait_for_end(&self, limit: Duration) -> Closed {
        let deadline = clock::now() + limit;
        let mut ended = self.ended.lock();
        loop {
            if let Some(how) = *ended {
                return how;
            }
            if self.ended_changed.wait_until(&mut ended, deadline).timed_out() {
                return (*ended).unwrap_or(Closed::Stuck);
            }
        }
    }
}

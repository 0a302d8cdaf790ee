//! What is left for a thread under a lock, and how the thread is woken for it.

use std::time::Duration;

use crate::{
    spin,
    sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering},
};

/// Something shared, and a bell. Whoever changes what is in there rings afterwards.
#[derive(Debug)]
pub(super) struct Doorbell<S> {
    state: Mutex<S>,
    rung: Condvar,
    /// How often: what the thread looks at while it waits awake.
    rings: AtomicU64,
}

impl<S> Doorbell<S> {
    pub(super) fn new(state: S) -> Self {
        Self { state: Mutex::new(state), rung: Condvar::new(), rings: AtomicU64::new(0) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, S> {
        self.state.lock()
    }

    /// Something has been left, and the lock given back.
    pub(super) fn ring(&self) {
        self.rings.fetch_add(1, Ordering::Release);
        self.rung.notify_one();
    }

    /// Waits while nothing is there, at most `limit`; awake at first. May end early.
    pub(super) fn wait(&self, awake: Duration, limit: Option<Duration>, nothing: impl Fn(&S) -> bool) {
        let seen = self.rings.load(Ordering::Acquire);
        if !awake.is_zero() && nothing(&self.lock()) {
            let rung = || (self.rings.load(Ordering::Acquire) != seen).then_some(());
            if spin::until(limit.map_or(awake, |limit| awake.min(limit)), rung).is_some() {
                return;
            }
        }
        let mut state = self.lock();
        if !nothing(&state) {
            return;
        }
        match limit {
            Some(limit) => drop(self.rung.wait_for(&mut state, limit)),
            None => self.rung.wait(&mut state),
        }
    }
}

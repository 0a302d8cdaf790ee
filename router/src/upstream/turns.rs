//! Two who are polled in one task, and wake each other.

use std::sync::Arc;
use std::task::{Wake, Waker};

use crate::sync::{AtomicU8, AtomicWaker, Ordering};

/// Wakes that connection and waiter give to each other while both are being polled make for another turn, and wake no task.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: AtomicU8,
    task: AtomicWaker,
}

const RESTING: u8 = 0;
const POLLING: u8 = 1;
const WOKEN: u8 = 2;

impl Turns {
    pub(super) fn begin(&self, task: &Waker) {
        self.task.register(task);
        self.exchange(POLLING);
    }

    /// Whether there was a wake since the last turn began; if not, the next one goes to the task.
    pub(super) fn again(&self) -> bool {
        let rested = self.state.compare_exchange(POLLING, RESTING, Ordering::AcqRel, Ordering::Acquire);
        if rested.is_err() {
            self.exchange(POLLING);
        }
        rested.is_err()
    }

    /// The waiter has what it wants; it comes back for more by itself.
    pub(super) fn end(&self) {
        self.exchange(RESTING);
    }

    /// Exchanged and not stored: only so what came before a wake that is overwritten here is certainly seen by the next poll.
    fn exchange(&self, state: u8) {
        self.state.swap(state, Ordering::AcqRel);
    }
}

impl Wake for Turns {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let polled =
            self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| (state != RESTING).then_some(WOKEN));
        if polled.is_err() {
            self.task.wake();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Waker;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_between_two_polls_reaches_the_task_and_one_within_makes_another_turn() {
        let (turns, count) = (Arc::new(Turns::default()), Arc::new(Count::default()));
        let (waker, task) = (Waker::from(Arc::clone(&turns)), Waker::from(Arc::clone(&count)));
        turns.begin(&task);
        waker.wake_by_ref();
        assert!(turns.again());
        assert!(!turns.again());
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        waker.wake_by_ref();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        turns.begin(&task);
        waker.wake_by_ref();
        turns.end();
        waker.wake_by_ref();
        assert_eq!(count.0.load(Ordering::SeqCst), 2, "after the end as well");
    }
}

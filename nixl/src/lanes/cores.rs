//! How many cores large reads keep busy.

use std::{sync::Arc, thread::available_parallelism};

use crate::sync::{AtomicUsize, Ordering};

/// The cores that this process may use, and how many of them large reads use now. One for all agents of a process.
#[derive(Debug)]
pub struct Cores {
    all: usize,
    busy: AtomicUsize,
}

/// Some of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    cores: Arc<Cores>,
    count: usize,
}

impl Cores {
    /// So many; none counts as one.
    #[must_use]
    pub fn new(all: usize) -> Arc<Self> {
        Arc::new(Self { all: all.max(1), busy: AtomicUsize::new(0) })
    }

    /// As many as the kernel and the container's CPU quota let this process use; one where they do not say.
    #[must_use]
    pub fn of_this_process() -> Arc<Self> {
        Self::new(available_parallelism().map_or(1, usize::from))
    }

    pub(super) fn several(&self) -> bool {
        self.all > 1
    }

    /// Takes what is free of `most`, at least one: a read is never kept waiting for a core.
    pub(super) fn take(self: &Arc<Self>, most: usize) -> Taken {
        let free = |busy: usize| self.all.saturating_sub(busy).clamp(1, most.max(1));
        let before = self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| Some(busy + free(busy)));
        // The update always answers something to store.
        let count = free(before.unwrap_or_else(|busy| busy));
        Taken { cores: Arc::clone(self), count }
    }
}

impl Taken {
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.cores.busy.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_second_core_is_given_only_while_one_is_free() {
        let cores = Cores::new(3);
        let (one, two, three) = (cores.take(2), cores.take(2), cores.take(2));
        assert_eq!((one.count(), two.count(), three.count()), (2, 1, 1));
        drop((one, three));
        assert_eq!(cores.take(2).count(), 2);
        assert_eq!(cores.busy.load(Ordering::Relaxed), 1);
        drop(two);
        assert_eq!(cores.busy.load(Ordering::Relaxed), 0);
        assert!(!Cores::new(0).several() && Cores::new(0).take(2).count() == 1);
    }
}

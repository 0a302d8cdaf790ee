//! How many requests of one key are under way.

use std::num::NonZeroU32;
use std::sync::Arc;

use crate::sync::{AtomicU32, Ordering};

/// A key's requests. Clones count the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places(Arc<AtomicU32>);

/// A place among them.
#[derive(Debug)]
pub(crate) struct InUse(Arc<AtomicU32>);

impl Places {
    /// Takes a place, if fewer than `most` are taken.
    pub(crate) fn take(&self, most: Option<NonZeroU32>) -> Option<InUse> {
        // In one step: a count that stands too high for a moment refuses somebody for whom there is a place.
        let next = |taken: u32| most.is_none_or(|most| taken < most.get()).then(|| taken.saturating_add(1));
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        taken.ok().map(|_before| InUse(Arc::clone(&self.0)))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

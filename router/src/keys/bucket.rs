//! A token bucket as one number: the moment at which it will be full again (GCRA). Reading the clock and one compare-and-swap.

use tokio::time::Instant;

use super::Rate;
use crate::sync::{AtomicU64, Ordering};

const SECOND: u64 = 1_000_000_000;

/// A token bucket, full at first.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Nanoseconds from one token to the next.
    interval: u64,
    /// Nanoseconds from empty to full.
    depth: u64,
    start: Instant,
    /// When it will be full, in nanoseconds since `start`.
    full_at: AtomicU64,
}

impl Bucket {
    pub(crate) fn new(rate: Rate) -> Self {
        let interval = SECOND / u64::from(rate.per_second.get());
        let depth = interval.saturating_mul(u64::from(rate.burst.get()));
        Self { interval, depth, start: Instant::now(), full_at: AtomicU64::new(0) }
    }

    /// Takes a token, or says in how many whole seconds there is one.
    pub(crate) fn spend(&self) -> Result<(), u32> {
        self.spend_at(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The same at so many nanoseconds since `start`.
    pub(crate) fn spend_at(&self, now: u64) -> Result<(), u32> {
        let spent = |full_at: u64| {
            let next = full_at.max(now).saturating_add(self.interval);
            (next <= now.saturating_add(self.depth)).then_some(next)
        };
        let result = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent);
        result.map(drop).map_err(|full_at| {
            let wait = full_at.saturating_add(self.interval).saturating_sub(now.saturating_add(self.depth));
            u32::try_from(wait.div_ceil(SECOND).max(1)).unwrap_or(u32::MAX)
        })
    }
}

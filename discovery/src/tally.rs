//! How following goes, in figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::Seen;

/// Figures of one source. Counters only grow.
#[derive(Debug)]
pub struct Tally {
    began: Instant,
    syncs: AtomicU64,
    failures: AtomicU64,
    /// Milliseconds from `began` to the last word of whoever is asked.
    last_ms: AtomicU64,
}

impl Tally {
    fn new(now: Instant) -> Self {
        Self { began: now, syncs: AtomicU64::new(0), failures: AtomicU64::new(0), last_ms: AtomicU64::new(0) }
    }

    /// Whole answers: lists of pods, or lookups of a name.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Questions that were not answered, and watches that ended in an error.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Time since the last word of whoever is asked; since the start when there was none.
    pub fn age(&self, now: Instant) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(self.began).saturating_sub(last)
    }
}

/// Where following tells what it sees.
#[derive(Debug)]
pub struct Publisher {
    pub(crate) seen: watch::Sender<Seen>,
    tally: Arc<Tally>,
}

impl Publisher {
    /// A publisher that has told nothing, with those who listen to it.
    pub fn new(now: Instant) -> (Self, watch::Receiver<Seen>, Arc<Tally>) {
        let ((seen, receiver), tally) = (watch::channel(Seen::default()), Arc::new(Tally::new(now)));
        (Self { seen, tally: Arc::clone(&tally) }, receiver, tally)
    }

    /// A whole answer has come.
    pub(crate) fn synced(&self, now: Instant) {
        self.tally.syncs.fetch_add(1, Ordering::Relaxed);
        self.heard(now);
    }

    /// A word has come.
    pub(crate) fn heard(&self, now: Instant) {
        let ms = u64::try_from(now.saturating_duration_since(self.tally.began).as_millis()).unwrap_or(u64::MAX);
        self.tally.last_ms.store(ms, Ordering::Relaxed);
    }

    /// Nobody has answered. Says whether somebody had before.
    pub(crate) fn failed(&self, trouble: String) -> bool {
        self.tally.failures.fetch_add(1, Ordering::Relaxed);
        let first = self.seen.borrow().trouble.is_none();
        self.seen.send_modify(|seen| seen.trouble = Some(trouble));
        first
    }

    /// What is so now. Says whether it is another thing than before.
    pub(crate) fn publish(&self, now: Seen) -> bool {
        self.seen.send_if_modified(|seen| {
            let changed = *seen != now;
            if changed {
                *seen = now;
            }
            changed
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_counts_from_the_last_word() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (told, seen, tally) = Publisher::new(start);
        assert_eq!(tally.age(at(5)), Duration::from_secs(5), "nobody has said anything yet");
        told.synced(at(7));
        told.heard(at(9));
        assert_eq!((tally.age(at(9)), tally.age(at(12))), (Duration::ZERO, Duration::from_secs(3)));
        assert!(told.failed("why".to_owned()) && !told.failed("still".to_owned()), "only the first is news");
        assert_eq!((tally.syncs(), tally.failures()), (1, 2));
        assert_eq!(tally.age(at(13)), Duration::from_secs(4), "a failure is no word");
        assert_eq!(seen.borrow().trouble.as_deref(), Some("still"));
        assert!(told.publish(Seen::of(Vec::new())) && !told.publish(Seen::of(Vec::new())));
    }
}

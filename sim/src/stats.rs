//! What one rank counts: the numbers behind vLLM's `/metrics` names. Written by the rank, read by anybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// One counter or gauge.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Reads.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The numbers of one rank.
#[derive(Debug, Default)]
pub struct RankStats {
    /// Requests that compute (prefill or decode).
    pub running: Count,
    /// Requests that wait for admission or for their KV.
    pub waiting: Count,
    /// Blocks in use, pinned ones included.
    pub used_blocks: Count,
    /// Requests whose blocks are pinned for a reader.
    pub pinned: Count,
    /// Prompt tokens of requests that started to compute.
    pub prompt_tokens: Count,
    /// Tokens generated.
    pub generation_tokens: Count,
    /// Requests that ended well.
    pub succeeded: Count,
    /// Tokens looked up in the prefix cache, and found.
    pub prefix_queries: Count,
    /// Tokens found in the prefix cache.
    pub prefix_hits: Count,
    /// Transfers that ended well.
    pub transfers: Count,
    /// Their bytes.
    pub transfer_bytes: Count,
    /// Their descriptors.
    pub transfer_descs: Count,
    /// Time from post to end, in microseconds.
    pub transfer_us: Count,
    /// Time inside post, in microseconds.
    pub post_us: Count,
    /// Loads that failed: handshake, post or transfer.
    pub failed_transfers: Count,
    /// Heartbeats and done notifications that could not be sent.
    pub failed_notifications: Count,
    /// Pinned requests whose lease ran out.
    pub expired: Count,
    /// Done notifications that came after that.
    pub late_notifications: Count,
    /// Notifications for requests that nobody knows, or that nobody can read.
    pub unknown_notifications: Count,
    /// Blocks that stay unused because hardware may still write into them.
    pub quarantined_blocks: Count,
}

impl RankStats {
    /// Adds one finished READ.
    pub fn transfer(&self, done: &nixl::ReadDone) {
        self.transfers.add(1);
        self.transfer_bytes.add(done.bytes);
        self.transfer_descs.add(u64::try_from(done.descs).unwrap_or(u64::MAX));
        self.transfer_us.add(micros(done.wire));
        self.post_us.add(micros(done.post));
    }
}

/// Which gauge a request is counted in at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for admission or for its KV.
    Waiting,
    /// Computes.
    Running,
}

/// Counts one request in one gauge, from its arrival until this value is dropped.
#[derive(Debug)]
pub struct Counted {
    stats: Arc<RankStats>,
    phase: Phase,
}

impl Counted {
    /// Counts a request that waits.
    pub fn waiting(stats: Arc<RankStats>) -> Self {
        stats.waiting.add(1);
        Self { stats, phase: Phase::Waiting }
    }

    /// Moves the request to the other gauge.
    pub fn run(&mut self) {
        if self.phase == Phase::Waiting {
            self.stats.running.add(1);
            self.leave();
            self.phase = Phase::Running;
        }
    }

    fn leave(&self) {
        let gauge = match self.phase {
            Phase::Waiting => &self.stats.waiting,
            Phase::Running => &self.stats.running,
        };
        gauge.0.fetch_sub(1, Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.leave();
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_in_one_gauge_until_it_is_gone() {
        let stats = Arc::new(RankStats::default());
        let mut counted = Counted::waiting(Arc::clone(&stats));
        assert_eq!((stats.waiting.get(), stats.running.get()), (1, 0));
        counted.run();
        counted.run();
        assert_eq!((stats.waiting.get(), stats.running.get()), (0, 1));
        drop(counted);
        assert_eq!((stats.waiting.get(), stats.running.get()), (0, 0));
    }
}

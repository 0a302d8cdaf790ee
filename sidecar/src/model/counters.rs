//! Totals since start, written by the core and read by `/metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv::ids::DpRank;
use parking_lot::RwLock;

use super::{Code, Stages};

/// How a transfer ended: with a receipt, or with a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A receipt was given.
    Landed,
    /// It failed.
    Failed(Code),
}

impl Ended {
    /// The word of the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Landed => "landed",
            Self::Failed(code) => code.as_str(),
        }
    }
}

/// Totals since start. All of them only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Transfers accepted.
    pub started: AtomicU64,
    landed: AtomicU64,
    failed: [AtomicU64; Code::ALL.len()],
    /// Bytes that have landed in staging with a receipt.
    pub bytes_landed: AtomicU64,
    /// Landed slots that D collected.
    pub collected: AtomicU64,
    /// Landed slots freed because the router finished or stopped claiming, without D's notification.
    pub uncollected: AtomicU64,
    /// Notifications of D for slots that were free already: D may have read reused memory.
    pub late_collect: AtomicU64,
    /// Notifications of a rank other than the one staged for.
    pub wrong_rank_collect: AtomicU64,
    /// Handshakes with remote engines made.
    pub handshakes: AtomicU64,
    /// Handshakes with remote engines that failed.
    pub handshakes_failed: AtomicU64,
    /// Heartbeats sent to P's shards.
    pub heartbeats: AtomicU64,
    /// "Done" notifications handed to the transport for P's shards.
    pub told: AtomicU64,
    /// Notifications to P's shards that could not be sent.
    pub tells_failed: AtomicU64,
    /// P's handles whose lease ran out without anyone having released them.
    pub leaked_handles: AtomicU64,
    /// Bytes that went into quarantine.
    pub quarantined_bytes: AtomicU64,
    /// Pull agents destroyed and made anew to end a quarantine.
    pub recycled_agents: AtomicU64,
    /// Bytes that have landed and were compared with the source's digests.
    pub compared_bytes: AtomicU64,
    /// Bytes of the own engines' blocks that were digested for others.
    pub served_digest_bytes: AtomicU64,
    /// Engine restarts noticed.
    pub engine_restarts: AtomicU64,
    /// Times per rank and stage of transfers that landed.
    pub stages: RankStages,
}

impl Counters {
    /// Counts one end.
    pub fn count_end(&self, ended: Ended) {
        match ended {
            Ended::Landed => add(&self.landed, 1),
            Ended::Failed(code) => {
                if let Some(counter) = self.failed.get(code.index()) {
                    add(counter, 1);
                }
            }
        }
    }

    /// Transfers ended, by how.
    pub fn ended(&self) -> Vec<(Ended, u64)> {
        let landed = (Ended::Landed, self.landed.load(Ordering::Relaxed));
        let failed = Code::ALL.into_iter().zip(&self.failed);
        let failed = failed.map(|(code, count)| (Ended::Failed(code), count.load(Ordering::Relaxed)));
        std::iter::once(landed).chain(failed).collect()
    }
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// The histograms of each rank, made when it is first asked for: as many as the pod has ranks.
#[derive(Debug, Default)]
pub struct RankStages {
    ranks: RwLock<BTreeMap<DpRank, Arc<StageHistograms>>>,
}

impl RankStages {
    /// One rank's.
    pub fn of(&self, rank: DpRank) -> Arc<StageHistograms> {
        if let Some(there) = self.ranks.read().get(&rank) {
            return Arc::clone(there);
        }
        Arc::clone(self.ranks.write().entry(rank).or_default())
    }
}

/// One histogram per stage.
#[derive(Debug, Default)]
pub struct StageHistograms {
    stages: [DurationHistogram; 7],
}

impl StageHistograms {
    /// Counts the stages before the receipt (`queued` to `verify`).
    pub(crate) fn observe_landed(&self, stages: &Stages) {
        self.observe(stages, 0..5);
    }

    /// Counts the stages after the receipt (`landed_idle`, `collect`).
    pub(crate) fn observe_collected(&self, stages: &Stages) {
        self.observe(stages, 5..7);
    }

    fn observe(&self, stages: &Stages, which: std::ops::Range<usize>) {
        let times = stages.named().into_iter().zip(&self.stages);
        for ((_, time), histogram) in times.skip(which.start).take(which.len()) {
            if let Some(time) = time {
                histogram.observe(time);
            }
        }
    }

    /// The stages' names with their histograms.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &DurationHistogram)> {
        Stages::default().named().into_iter().map(|(name, _)| name).zip(&self.stages)
    }
}

/// A histogram of durations with fixed bounds.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    buckets: [AtomicU64; DurationHistogram::BOUNDS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl DurationHistogram {
    /// Upper bounds in microseconds; whatever is longer is only in the count and the sum.
    pub const BOUNDS_US: [u64; 16] = [
        10, 50, 100, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
        30_000_000,
    ];

    fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        for (bound, bucket) in Self::BOUNDS_US.iter().zip(&self.buckets) {
            if us <= *bound {
                add(bucket, 1);
            }
        }
        add(&self.count, 1);
        add(&self.sum_us, us);
    }

    /// Upper bound and how many were at or below it (cumulative, as Prometheus wants it).
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let bounds = Self::BOUNDS_US.into_iter().map(Duration::from_micros);
        bounds.zip(self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)))
    }

    /// How many in all.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Their sum.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us.load(Ordering::Relaxed))
    }
}

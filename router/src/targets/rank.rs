//! One rank of a pod. What a choice reads are atomics; what people read stands behind a lock.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use http::{HeaderValue, Uri};
use kv::ids::{DpRank, LocalRank};
use kv::placement::Reported;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::Tally;
use crate::breaker::{Guard, Tuning};

/// What is known of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RankView {
    pub(crate) rank: DpRank,
    pub(crate) ready: bool,
    /// The sidecar's word, or the router's own while it has heard nothing.
    pub(crate) state: String,
    /// In words, for operators: may hold addresses.
    pub(crate) reasons: Vec<String>,
    /// Requests running in the engine, as last reported.
    pub(crate) running: u32,
    /// Requests waiting in the engine, as last reported.
    pub(crate) waiting: u32,
    /// KV-cache usage in per mille, as last reported.
    pub(crate) kv_usage: u16,
    /// Usage of the staging arena in per mille, as last reported.
    pub(crate) staging_used: u16,
    /// Blocks of staging that one request can have at most, as last reported; 0 where nothing is known.
    pub(crate) staging_blocks: u64,
}

impl RankView {
    /// A rank of which nothing is known, and why.
    pub(crate) fn unknown(rank: DpRank, state: &str, reason: &str) -> Self {
        Self {
            rank,
            ready: false,
            state: state.to_owned(),
            reasons: vec![reason.to_owned()],
            running: 0,
            waiting: 0,
            kv_usage: 0,
            staging_used: 0,
            staging_blocks: 0,
        }
    }
}

/// A rank as choices and operators see it.
#[derive(Debug)]
pub(crate) struct Rank {
    /// The same in every router: made from the engine's address and the local number.
    pub(crate) identity: u64,
    /// Its number in the pod, for every request's header.
    pub(super) local_rank: HeaderValue,
    /// Its number in the deployment.
    number: AtomicU16,
    ready: AtomicBool,
    /// No new work: an operator drains it.
    pub(crate) draining: AtomicBool,
    /// This router's requests there, and the most since the last report.
    requests: AtomicU32,
    peak: AtomicU32,
    /// The tokens that they may still cost.
    tokens: AtomicU64,
    /// Requests of others, and the whole report as one number (`kv::placement::Reported::pressure`).
    others: AtomicU32,
    pressure: AtomicU64,
    pub(crate) breaker: Guard,
    pub(super) tally: Tally,
    said: Mutex<RankView>,
}

impl Rank {
    pub(super) fn new(engine: &Uri, local: LocalRank, tuning: Tuning) -> Self {
        let rank = DpRank(local.0);
        Self {
            identity: xxh3_64(format!("{engine}@{local}").as_bytes()),
            local_rank: HeaderValue::from(local.0),
            number: AtomicU16::new(rank.0),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            tokens: AtomicU64::new(0),
            others: AtomicU32::new(0),
            pressure: AtomicU64::new(0),
            breaker: Guard::new(tuning),
            tally: Tally::default(),
            said: Mutex::new(RankView::unknown(rank, "unknown", "nothing heard of it yet")),
        }
    }

    /// Takes a report in. Says whether the rank has become ready by it.
    pub(super) fn show(&self, view: RankView) -> bool {
        let in_flight = self.in_flight();
        // A report is a moment old, and may still hold those that have ended here since the one before.
        let own = self.peak.swap(in_flight, Ordering::Relaxed).max(in_flight);
        let others = view.running.saturating_add(view.waiting).saturating_sub(own);
        let reported =
            Reported { others, waiting: view.waiting, kv_usage: view.kv_usage, staging_used: view.staging_used };
        self.others.store(others, Ordering::Relaxed);
        self.pressure.store(reported.pressure(), Ordering::Relaxed);
        self.number.store(view.rank.0, Ordering::Relaxed);
        let was = self.ready.swap(view.ready, Ordering::Relaxed);
        let now_ready = view.ready && !was;
        *self.said.lock() = view;
        if now_ready {
            self.breaker.reconsider();
        }
        now_ready
    }

    /// From now on nothing is known of it.
    pub(crate) fn lose(&self, state: &str, reason: &str) {
        let rank = self.number();
        self.show(RankView::unknown(rank, state, reason));
    }

    pub(super) fn enter(&self, tokens: u32) {
        let now = self.requests.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.peak.fetch_max(now, Ordering::Relaxed);
        self.tokens.fetch_add(u64::from(tokens), Ordering::Relaxed);
    }

    pub(super) fn leave(&self, tokens: u32) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
        self.tokens.fetch_sub(u64::from(tokens), Ordering::Relaxed);
    }

    /// What the pod last said.
    pub(crate) fn view(&self) -> RankView {
        self.said.lock().clone()
    }

    /// As the view has it.
    pub(crate) fn staging_blocks(&self) -> u64 {
        self.said.lock().staging_blocks
    }

    pub(crate) fn number(&self) -> DpRank {
        DpRank(self.number.load(Ordering::Relaxed))
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// This router's requests there.
    pub(crate) fn in_flight(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The tokens that this router's requests there may still cost.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// What others have there, in thousandths of a request.
    pub(crate) fn pressure(&self) -> u64 {
        self.pressure.load(Ordering::Relaxed)
    }

    /// Requests there, whosoever they are.
    pub(crate) fn all_requests(&self) -> u32 {
        self.in_flight().saturating_add(self.others.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank() -> Rank {
        let tuning = Tuning { failures: 1, successes: 1, first_wait_ms: 9, longest_wait_ms: 9, window_ms: 9 };
        Rank::new(&Uri::from_static("http://p/"), LocalRank(1), tuning)
    }

    fn view(running: u32, waiting: u32) -> RankView {
        RankView { ready: true, running, waiting, ..RankView::unknown(DpRank(9), "ready", "") }
    }

    #[test]
    fn only_what_others_have_there_is_added_to_what_is_known() {
        let rank = rank();
        rank.enter(100);
        rank.enter(50);
        rank.show(view(3, 0));
        assert_eq!((rank.in_flight(), rank.tokens(), rank.all_requests(), rank.pressure()), (2, 150, 3, 1000));
        rank.leave(100);
        rank.leave(50);
        rank.show(view(3, 0));
        assert_eq!(rank.all_requests(), 1, "two of the three were ours at some time since the last report");
        rank.show(view(3, 1));
        assert_eq!((rank.all_requests(), rank.tokens(), rank.pressure()), (4, 0, 5000));
        assert_eq!(rank.number(), DpRank(9));
    }

    #[test]
    fn a_rank_that_comes_back_may_be_probed_at_once() {
        let rank = rank();
        rank.show(view(0, 0));
        rank.breaker.fail(5, 1);
        rank.show(view(1, 0));
        assert!(!rank.breaker.admits(6), "it was ready all the time");
        rank.lose("gone", "it left");
        assert_eq!((rank.is_ready(), rank.pressure(), rank.view().rank), (false, 0, DpRank(9)));
        rank.show(view(0, 0));
        assert!(rank.breaker.admits(6));
    }
}

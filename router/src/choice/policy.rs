//! Each side's policy: how its rank is chosen, and what is remembered for that.

use std::sync::atomic::{AtomicUsize, Ordering};

use clap::ValueEnum;
use http::HeaderName;
use kv::ids::DpRank;
use kv::placement::{Draw, Held, Order};
use parking_lot::Mutex;

use super::ask::{Ask, BLOCK};
use super::prefixes::{Holder, Prefixes};
use crate::targets::{Side, Target};

/// How the rank of a side is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PolicyKind {
    /// The rank with the least outstanding work; under `--rank-pairing same` the pair with the least.
    #[default]
    #[value(alias = "least_loaded")]
    LeastLoaded,
    /// One after the other.
    #[value(alias = "round_robin")]
    RoundRobin,
    /// Any.
    Random,
    /// The less loaded one of two random ones.
    #[value(alias = "power_of_two")]
    PowerOfTwo,
    /// The same rank for the same session, whichever ranks come and go.
    #[value(alias = "consistent_hash")]
    ConsistentHash,
    /// The rank that got the longest beginning of the prompt before, unless it has too much to do.
    #[value(alias = "cache_aware")]
    CacheAware,
}

/// The policies and their figures.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    pub(crate) prefill: PolicyKind,
    pub(crate) decode: PolicyKind,
    /// Headers that name a session, the first that is there.
    pub(crate) session_headers: Vec<HeaderName>,
    /// Per cent of a prompt that must be known for it to count.
    pub(crate) cache_percent: u32,
    /// Requests more than the least loaded rank's …
    pub(crate) slack_requests: u32,
    /// … and per cent of them, beyond which who knows the prompt is passed over.
    pub(crate) slack_percent: u32,
    /// Bytes of prompts that are remembered per side.
    pub(crate) tree_bytes: u64,
}

/// Both sides' policies at work.
#[derive(Debug)]
pub(crate) struct Policies {
    tuning: Tuning,
    turn: AtomicUsize,
    prefill: Option<Mutex<Prefixes>>,
    decode: Option<Mutex<Prefixes>>,
}

impl Policies {
    pub(crate) fn new(tuning: Tuning) -> Self {
        let block = u64::try_from(BLOCK).unwrap_or(u64::MAX);
        let blocks = usize::try_from(tuning.tree_bytes / block).unwrap_or(usize::MAX);
        let table = |kind| (kind == PolicyKind::CacheAware).then(|| Mutex::new(Prefixes::new(blocks)));
        let (prefill, decode) = (table(tuning.prefill), table(tuning.decode));
        Self { tuning, turn: AtomicUsize::new(0), prefill, decode }
    }

    fn kind(&self, side: Side) -> PolicyKind {
        match side {
            Side::Prefill => self.tuning.prefill,
            Side::Decode => self.tuning.decode,
        }
    }

    fn table(&self, side: Side) -> Option<&Mutex<Prefixes>> {
        match side {
            Side::Prefill => self.prefill.as_ref(),
            Side::Decode => self.decode.as_ref(),
        }
    }

    pub(super) fn hash_sessions(&self) -> bool {
        [self.tuning.prefill, self.tuning.decode].contains(&PolicyKind::ConsistentHash)
    }

    pub(super) fn remember_prompts(&self) -> bool {
        self.prefill.is_some() || self.decode.is_some()
    }

    pub(super) fn session_headers(&self) -> &[HeaderName] {
        &self.tuning.session_headers
    }

    /// The next turn and the next random bits.
    pub(super) fn draw(&self) -> Draw {
        Draw { turn: self.turn.fetch_add(1, Ordering::Relaxed), random: fastrand::u64(..) }
    }

    /// Who knows how much of the prompt.
    pub(super) fn held(&self, side: Side, ask: &Ask) -> Vec<(Holder, u32)> {
        self.table(side).map(|table| table.lock().holders(&ask.blocks)).unwrap_or_default()
    }

    pub(super) fn order<'a>(&self, side: Side, ask: &Ask, held: &'a [((usize, DpRank), u32)]) -> Order<'a> {
        match self.kind(side) {
            PolicyKind::LeastLoaded => Order::Least,
            PolicyKind::RoundRobin => Order::InTurn,
            PolicyKind::Random => Order::Random,
            PolicyKind::PowerOfTwo => Order::PowerOfTwo,
            PolicyKind::ConsistentHash => Order::Hash(ask.session),
            PolicyKind::CacheAware => {
                let blocks = u32::try_from(ask.blocks.len()).unwrap_or(u32::MAX);
                Order::Held(Held {
                    by: held,
                    least: blocks.saturating_mul(self.tuning.cache_percent).div_ceil(100),
                    slack_requests: self.tuning.slack_requests,
                    slack_percent: self.tuning.slack_percent,
                })
            }
        }
    }

    /// The request goes there.
    pub(super) fn placed(&self, ask: &Ask, target: &Target) {
        if let Some(table) = self.table(target.pod.id.side) {
            table.lock().add(&ask.blocks, (target.pod.id.index, target.rank));
        }
    }
}

//! Each side's policy: how its rank is chosen, and what is remembered for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::ValueEnum;
use http::HeaderName;
use kv::ids::LocalRank;
use kv::placement::{Draw, Held, Order};
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use super::ask::{Ask, BLOCK};
use super::follow::{Ports, follow};
use super::held_blocks::{HeldBlocks, token_chain};
use super::learned::{Learned, Text};
use super::prefixes::{Holder, Prefixes};
use crate::targets::{Pod, Side, Target};

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
    /// The rank whose engine has the longest beginning of the prompt in its cache, as its KV events say, unless it has too much to
    /// do; like cache-aware for prompts whose tokens are not known.
    #[value(aliases = ["kv_events", "kv_aware", "kv-aware"])]
    KvEvents,
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
    /// Where engines publish their KV events.
    pub(crate) ports: Ports,
}

/// What one side remembers of prompts.
#[derive(Debug)]
struct Memory {
    sent: Mutex<Prefixes>,
    /// Where the engines' own word counts more.
    held: Option<Arc<Mutex<HeldBlocks>>>,
}

/// Who holds a prompt's beginning, of so many blocks.
#[derive(Debug, Default)]
pub(super) struct HeldBy {
    by: Vec<(Holder, u32)>,
    of: usize,
}

/// Both sides' policies at work.
#[derive(Debug)]
pub(crate) struct Policies {
    tuning: Tuning,
    turn: AtomicUsize,
    prefill: Option<Memory>,
    decode: Option<Memory>,
    learned: Mutex<Learned>,
}

impl Policies {
    pub(crate) fn new(tuning: Tuning) -> Self {
        let block = u64::try_from(BLOCK).unwrap_or(u64::MAX);
        let blocks = usize::try_from(tuning.tree_bytes / block).unwrap_or(usize::MAX);
        let memory = |kind| {
            let held = (kind == PolicyKind::KvEvents).then(Arc::default);
            let remembers = matches!(kind, PolicyKind::CacheAware | PolicyKind::KvEvents);
            remembers.then(|| Memory { sent: Mutex::new(Prefixes::new(blocks)), held })
        };
        let (prefill, decode) = (memory(tuning.prefill), memory(tuning.decode));
        let learned = Mutex::new(Learned::new(blocks));
        Self { tuning, turn: AtomicUsize::new(0), prefill, decode, learned }
    }

    /// Follows the KV events of a pod's ranks, where its side's policy needs them.
    pub(crate) fn follow(&self, pod: &Arc<Pod>, tasks: &TaskTracker) {
        let Some(held) = self.held_blocks(pod.id.side) else { return };
        for local in (0..).map(LocalRank).take(pod.ranks.len()) {
            tasks.spawn(follow(Arc::clone(pod), local, self.tuning.ports, Arc::clone(held)));
        }
    }

    /// Blocks that a rank's engine is known to hold; `None` where its events are not followed.
    pub(crate) fn known_of(&self, target: &Target) -> Option<usize> {
        let held = self.held_blocks(target.pod.id.side)?;
        Some(held.lock().count((target.pod.id.index, target.rank)))
    }

    /// The prompt of this request has become these tokens.
    pub(crate) fn learn(&self, ask: &Ask, tokens: impl FnOnce() -> Vec<u32>) {
        if self.follow_events() {
            let (tokens, size) = (tokens(), self.block_size());
            self.learned.lock().learn(&ask.text(), &tokens, size);
        }
    }

    fn held_blocks(&self, side: Side) -> Option<&Arc<Mutex<HeldBlocks>>> {
        self.memory(side)?.held.as_ref()
    }

    pub(super) fn follow_events(&self) -> bool {
        [Side::Prefill, Side::Decode].into_iter().any(|side| self.held_blocks(side).is_some())
    }

    /// Of whichever side is followed: both run the same cache, or no KV could be handed over.
    fn block_size(&self) -> u32 {
        let sides = [Side::Prefill, Side::Decode].into_iter().filter_map(|side| self.held_blocks(side));
        sides.map(|held| held.lock().block_size()).max().unwrap_or(0)
    }

    pub(super) fn token_blocks(&self, tokens: &[u32]) -> Vec<u64> {
        match self.block_size() {
            0 => Vec::new(),
            size => token_chain(tokens, size),
        }
    }

    pub(super) fn known_blocks(&self, text: &Text<'_>) -> Vec<u64> {
        self.learned.lock().blocks(text)
    }

    fn kind(&self, side: Side) -> PolicyKind {
        match side {
            Side::Prefill => self.tuning.prefill,
            Side::Decode => self.tuning.decode,
        }
    }

    fn memory(&self, side: Side) -> Option<&Memory> {
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

    /// Who holds how much of the prompt.
    pub(super) fn held(&self, side: Side, ask: &Ask) -> HeldBy {
        let Some(memory) = self.memory(side) else { return HeldBy::default() };
        match &memory.held {
            Some(held) if !ask.token_blocks.is_empty() => {
                HeldBy { by: held.lock().holders(&ask.token_blocks), of: ask.token_blocks.len() }
            }
            Some(_) | None => HeldBy { by: memory.sent.lock().holders(&ask.blocks), of: ask.blocks.len() },
        }
    }

    pub(super) fn order<'a>(&self, side: Side, ask: &Ask, held: &'a HeldBy) -> Order<'a> {
        match self.kind(side) {
            PolicyKind::LeastLoaded => Order::Least,
            PolicyKind::RoundRobin => Order::InTurn,
            PolicyKind::Random => Order::Random,
            PolicyKind::PowerOfTwo => Order::PowerOfTwo,
            PolicyKind::ConsistentHash => Order::Hash(ask.session),
            PolicyKind::CacheAware | PolicyKind::KvEvents => {
                let blocks = u32::try_from(held.of).unwrap_or(u32::MAX);
                Order::Held(Held {
                    by: &held.by,
                    least: blocks.saturating_mul(self.tuning.cache_percent).div_ceil(100),
                    slack_requests: self.tuning.slack_requests,
                    slack_percent: self.tuning.slack_percent,
                })
            }
        }
    }

    /// The request goes there.
    pub(super) fn placed(&self, ask: &Ask, target: &Target) {
        if let Some(memory) = self.memory(target.pod.id.side) {
            memory.sent.lock().add(&ask.blocks, (target.pod.id.index, target.rank));
        }
    }
}

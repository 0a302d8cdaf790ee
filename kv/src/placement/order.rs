//! The ways to choose one rank of a side.

use super::Candidate;
use crate::ids::DpRank;

/// How one side's rank is chosen among those that may be.
#[derive(Clone, Copy, Debug, Default)]
pub enum Order<'a> {
    /// The least cost; equals take turns.
    #[default]
    Least,
    /// One after the other.
    InTurn,
    /// Any.
    Random,
    /// The cheaper one of two random ones.
    PowerOfTwo,
    /// By rendezvous hashing of this key: ranks that come or go move only the keys that they get or had.
    Hash(u64),
    /// Whoever holds most of the prompt's beginning, unless that rank has too much to do; then, or when nobody holds enough of
    /// it, the least cost.
    Held(Held<'a>),
}

/// Who holds how much of a prompt's beginning.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Ranks by pod and number with the blocks that they hold, from the first without a gap.
    pub by: &'a [((usize, DpRank), u32)],
    /// Fewer blocks than these are as good as none.
    pub least: u32,
    /// A holder is passed over when it has more requests than the least loaded rank by more than this number …
    pub slack_requests: u32,
    /// … and more than this many per cent of the least loaded rank's.
    pub slack_percent: u32,
}

/// The chance that a choice uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Draw {
    /// Any counter.
    pub turn: usize,
    /// Random bits.
    pub random: u64,
}

impl Draw {
    /// Other random bits, for the other side.
    pub(super) fn other(self) -> Self {
        Self { random: mix(self.random), ..self }
    }

    /// A counter that goes on by one when this one has gone round.
    pub(super) fn after(self, round: usize) -> Self {
        Self { turn: self.turn.checked_div(round).unwrap_or(0), ..self }
    }
}

/// The position of the chosen candidate; `cost` is `None` for those that may not be chosen.
pub(super) fn pick(
    order: &Order<'_>,
    candidates: &[Candidate],
    draw: Draw,
    cost: impl Fn(&Candidate) -> Option<u64>,
) -> Option<usize> {
    let nth = |n: usize| candidates.iter().enumerate().filter(|(_, it)| cost(it).is_some()).nth(n).map(|(at, _)| at);
    let eligible = || candidates.iter().filter(|it| cost(it).is_some()).count();
    match order {
        Order::Least => least(candidates, draw.turn, cost),
        Order::InTurn => nth(draw.turn.checked_rem(eligible())?),
        Order::Random => nth(below(draw.random, eligible())?),
        Order::PowerOfTwo => {
            let count = eligible();
            let first = below(draw.random, count)?;
            // One of the others, when there are any.
            let second = below(mix(draw.random), count - 1).map_or(first, |step| (first + 1 + step) % count);
            let (first, second) = (nth(first)?, nth(second)?);
            let at = |position: usize| candidates.get(position).and_then(&cost);
            Some(if at(second) < at(first) { second } else { first })
        }
        Order::Hash(key) => {
            let weight = |it: &Candidate| mix(*key ^ mix(it.identity));
            let weighed = candidates.iter().enumerate().filter(|(_, it)| cost(it).is_some());
            weighed.max_by_key(|(_, it)| weight(it)).map(|(at, _)| at)
        }
        Order::Held(held) => held.pick(candidates, &cost).or_else(|| least(candidates, draw.turn, cost)),
    }
}

impl Held<'_> {
    fn pick(&self, candidates: &[Candidate], cost: &impl Fn(&Candidate) -> Option<u64>) -> Option<usize> {
        let most = self.by.iter().map(|(_, blocks)| *blocks).max()?;
        if most < self.least.max(1) {
            return None;
        }
        let mut fewest = u32::MAX;
        let mut best: Option<(u32, u64, u32, usize)> = None;
        for (at, candidate) in candidates.iter().enumerate() {
            let Some(cost) = cost(candidate) else { continue };
            fewest = fewest.min(candidate.requests);
            let blocks = self.by.iter().find(|(of, _)| *of == (candidate.pod, candidate.rank)).map_or(0, |held| held.1);
            let better = best.is_none_or(|(most, least, ..)| blocks > most || (blocks == most && cost < least));
            if blocks >= self.least.max(1) && better {
                best = Some((blocks, cost, candidate.requests, at));
            }
        }
        let (.., requests, at) = best?;
        let by_number = requests > fewest.saturating_add(self.slack_requests);
        let by_share = u64::from(requests) * 100 > u64::from(fewest) * u64::from(self.slack_percent);
        (!(by_number && by_share)).then_some(at)
    }
}

/// The position with the smallest cost; the first from `turn` on among equals.
fn least(candidates: &[Candidate], turn: usize, cost: impl Fn(&Candidate) -> Option<u64>) -> Option<usize> {
    let start = turn.checked_rem(candidates.len())?;
    let (before, from) = candidates.split_at_checked(start)?;
    let mut best: Option<(u64, usize)> = None;
    for (at, candidate) in (start..).zip(from).chain((0..).zip(before)) {
        if let Some(cost) = cost(candidate)
            && best.is_none_or(|(least, _)| cost < least)
        {
            best = Some((cost, at));
        }
    }
    best.map(|(_, at)| at)
}

/// Evenly from `0..count`, near enough; `None` when that is empty.
fn below(random: u64, count: usize) -> Option<usize> {
    let count = u64::try_from(count).ok()?;
    usize::try_from(random.checked_rem(count)?).ok()
}

/// A permutation of 64 bits without visible pattern (the finalizer of `splitmix64`).
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

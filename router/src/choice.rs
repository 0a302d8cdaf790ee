//! Which ranks a request gets: [`kv::placement`] on the board's ranks, by each side's policy, with what the client wished and what
//! has failed.
//!
//! | module | is |
//! |---|---|
//! | [`policy`] | a side's policy and what it remembers |
//! | [`ask`] | what a policy needs to know of a request |
//! | [`prefixes`] | who was sent the beginning of a prompt |
//! | [`held_blocks`], [`follow`] | who has it, as the engines' KV events say |
//! | [`learned`] | which tokens a text becomes |

mod ask;
mod follow;
mod held_blocks;
mod learned;
mod policy;
mod prefixes;

use std::cell::RefCell;

use kv::ids::{DpRank, LocalRank};
use kv::placement::{self, Draw, Order, Orders, Placer, cost};

use crate::config::Pairing;
use crate::pod_local::Prefillers;
use crate::targets::{Board, Fleet, Rank, Side, Target};

pub(crate) use ask::Ask;
pub(crate) use follow::Ports;
pub use policy::PolicyKind;
pub(crate) use policy::{Policies, Tuning};

/// Ranks that the client asked for, by global number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) prefill: Option<DpRank>,
    pub(crate) decode: Option<DpRank>,
}

/// Ranks that have failed this request already.
#[derive(Clone, Debug, Default)]
pub(crate) struct Avoid {
    /// Taken again only when there is no other.
    unlucky: Vec<(Side, (usize, DpRank))>,
    /// Never taken again: the same would happen.
    unfit: Vec<(Side, (usize, DpRank))>,
}

impl Avoid {
    /// Another rank would be better.
    pub(crate) fn unlucky(&mut self, target: &Target) {
        self.unlucky.push((target.pod.id.side, key(target)));
    }

    /// This rank cannot serve this request.
    pub(crate) fn unfit(&mut self, target: &Target) {
        self.unfit.push((target.pod.id.side, key(target)));
    }

    /// Its arena is too small for this request; so are those that are known to be no larger.
    pub(crate) fn too_small(&mut self, fleet: &Fleet, target: &Target) {
        self.unfit(target);
        let side = target.pod.id.side;
        let Some(refused) = target.pod.ranks.get(usize::from(target.local.0)).map(Rank::staging_blocks) else { return };
        for pod in fleet.side(side) {
            let small = pod.ranks.iter().filter(|rank| (1..=refused).contains(&rank.staging_blocks()));
            self.unfit.extend(small.map(|rank| (side, (pod.id.index, rank.number()))));
        }
    }

    fn lists(&self, side: Side, with_unlucky: bool) -> Vec<(usize, DpRank)> {
        let unlucky = self.unlucky.iter().filter(|_| with_unlucky);
        self.unfit.iter().chain(unlucky).filter(|(of, _)| *of == side).map(|(_, key)| *key).collect()
    }
}

fn key(target: &Target) -> (usize, DpRank) {
    (target.pod.id.index, target.rank)
}

/// Everything that narrows a choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    pub(crate) pairing: Pairing,
    pub(crate) wish: Wish,
    pub(crate) prefillers: &'a Prefillers,
    pub(crate) avoid: &'a Avoid,
    /// By which policies, for which request; `None` only looks whether there is anybody.
    pub(crate) by: Option<(&'a Policies, &'a Ask)>,
}

/// One side's ranks at one moment, as [`placement`] takes them, and where each stands in the fleet.
#[derive(Debug, Default)]
struct Seen {
    figures: Vec<placement::Candidate>,
    places: Vec<(usize, LocalRank)>,
}

impl Seen {
    /// With `only`, no other pod counts.
    fn look(&mut self, fleet: &Fleet, side: Side, only: Option<usize>, now_ms: u64, typical: u32) {
        self.figures.clear();
        self.places.clear();
        for (at, pod) in fleet.side(side).iter().enumerate() {
            let wanted = only.is_none_or(|only| only == pod.id.index);
            let open = wanted && !pod.is_draining() && pod.breaker.admits(now_ms);
            for (local, rank) in (0..).map(LocalRank).zip(&pod.ranks) {
                self.places.push((at, local));
                self.figures.push(placement::Candidate {
                    pod: pod.id.index,
                    rank: rank.number(),
                    identity: rank.identity,
                    ready: open && rank.is_ready() && !rank.is_draining() && rank.breaker.admits(now_ms),
                    cost: cost(rank.tokens(), rank.pressure(), typical),
                    requests: rank.all_requests(),
                });
            }
        }
    }

    /// Asks the breakers for leave; a rank that does not get it (another request's probe was quicker) is no longer ready.
    fn begin(&mut self, fleet: &Fleet, side: Side, position: usize, now_ms: u64) -> bool {
        let pod = self.places.get(position).and_then(|(at, local)| Some((fleet.side(side).get(*at)?, *local)));
        let may = pod.is_some_and(|(pod, local)| {
            let rank = pod.ranks.get(usize::from(local.0));
            pod.breaker.begin(now_ms) && rank.is_some_and(|rank| rank.breaker.begin(now_ms))
        });
        if !may && let Some(figure) = self.figures.get_mut(position) {
            figure.ready = false;
        }
        may
    }

    fn target(&self, fleet: &Fleet, side: Side, position: usize, tokens: u32) -> Option<Target> {
        let (at, local) = *self.places.get(position)?;
        let rank = self.figures.get(position)?.rank;
        Some(Target { pod: fleet.side(side).get(at)?.clone(), local, rank, tokens })
    }
}

/// Memory that choices on one thread use again and again.
#[derive(Debug, Default)]
struct Scratch {
    prefill: Seen,
    decode: Seen,
    placer: Placer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What is being chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// With a pod's index, no other pod prefills.
    Pair(Option<usize>),
    /// The decode rank only, for a prefill that is done.
    DecodeFor((usize, DpRank)),
    /// The decode rank only, for a whole request.
    Alone,
}

impl Terms<'_> {
    /// A prefill rank and a decode rank that go together, or `None` when no such pair is ready.
    pub(crate) fn pair(&self, board: &Board) -> Option<(Target, Target)> {
        [true, false].into_iter().find_map(|with_unlucky| match self.prefillers {
            Prefillers::Any => self.chosen(board, Wanted::Pair(None), with_unlucky),
            Prefillers::Nobody => None,
            Prefillers::These(pods) => {
                pods.iter().find_map(|pod| self.chosen(board, Wanted::Pair(Some(*pod)), with_unlucky))
            }
        })
    }

    /// Another decode rank for KV that a prefill rank holds already. Ranks that have failed are not taken again: a new prefill
    /// elsewhere is the better way then.
    pub(crate) fn decode_for(&self, board: &Board, prefill: &Target) -> Option<Target> {
        self.chosen(board, Wanted::DecodeFor(key(prefill)), true).map(|(_, decode)| decode)
    }

    /// A decode rank that does a whole request by itself.
    pub(crate) fn alone(&self, board: &Board) -> Option<Target> {
        let terms = Terms { pairing: Pairing::Any, wish: Wish { prefill: None, ..self.wish }, ..*self };
        let chosen = terms.chosen(board, Wanted::Alone, true).or_else(|| terms.chosen(board, Wanted::Alone, false));
        chosen.map(|(_, decode)| decode)
    }

    fn chosen(&self, board: &Board, wanted: Wanted, with_unlucky: bool) -> Option<(Target, Target)> {
        let done = match wanted {
            Wanted::DecodeFor(prefill) => Some(prefill),
            Wanted::Pair(_) | Wanted::Alone => None,
        };
        let not_decode = self.avoid.lists(Side::Decode, with_unlucky);
        let not_prefill = match wanted {
            Wanted::Pair(_) => self.avoid.lists(Side::Prefill, with_unlucky),
            Wanted::DecodeFor(_) | Wanted::Alone => Vec::new(),
        };
        let wish = placement::Wish {
            prefill_rank: self.wish.prefill.filter(|_| done.is_none()),
            decode_rank: self.wish.decode,
            prefill_target: done,
            not_prefill: &not_prefill,
            not_decode: &not_decode,
        };
        // Whoever may wish for both ranks may pair across ranks.
        let crossed = self.wish.prefill.is_some() && self.wish.decode.is_some();
        let pairing = match self.pairing {
            Pairing::Same if !crossed => placement::Pairing::Same,
            Pairing::Same | Pairing::Any => placement::Pairing::Any,
        };
        let fleet = board.fleet();
        let (only, is_pair) = match wanted {
            Wanted::Pair(only) => (only, true),
            Wanted::DecodeFor(_) | Wanted::Alone => (None, false),
        };
        // Alone, the decode rank stands on both sides and only the second choice counts.
        let first_side = if wanted == Wanted::Alone { Side::Decode } else { Side::Prefill };
        SCRATCH.with_borrow_mut(|Scratch { prefill, decode, placer }| {
            let (now_ms, typical) = (board.now_ms(), board.typical());
            prefill.look(&fleet, first_side, only, now_ms, typical);
            decode.look(&fleet, Side::Decode, None, now_ms, typical);
            let (held_prefill, held_decode);
            let (mut orders, mut draw) = (Orders { prefill: Order::Least, decode: Order::Least }, Draw::default());
            if let Some((policies, ask)) = self.by {
                draw = policies.draw();
                if is_pair {
                    held_prefill = policies.held(Side::Prefill, ask);
                    orders.prefill = policies.order(Side::Prefill, ask, &held_prefill);
                }
                held_decode = policies.held(Side::Decode, ask);
                orders.decode = policies.order(Side::Decode, ask, &held_decode);
            }
            loop {
                let pair = placer.choose(pairing, &orders, &prefill.figures, &decode.figures, &wish, draw)?;
                if self.by.is_some() {
                    // Each refusal takes a rank out, so this ends.
                    let led = !is_pair || prefill.begin(&fleet, first_side, pair.prefill, now_ms);
                    if !led || !decode.begin(&fleet, Side::Decode, pair.decode, now_ms) {
                        continue;
                    }
                }
                let tokens = |side| self.by.map_or(0, |(_, ask)| ask.tokens(side));
                let first = prefill.target(&fleet, first_side, pair.prefill, tokens(Side::Prefill))?;
                let second = decode.target(&fleet, Side::Decode, pair.decode, tokens(Side::Decode))?;
                if let Some((policies, ask)) = self.by {
                    board.learn_typical(tokens(Side::Decode));
                    if is_pair {
                        policies.placed(ask, &first);
                    }
                    policies.placed(ask, &second);
                }
                return Some((first, second));
            }
        })
    }
}

//! Which prefill rank and which decode rank serve a request.
//!
//! Under [`Pairing::Same`] a request prefilled on rank `i` decodes on rank `i` (of any decode pod), and the prefill side's
//! [`Order`] leads; under [`Pairing::Any`] each side is chosen by itself. Chance and time are arguments. A choice costs one or
//! two passes over the candidates and keeps no memory of its own but [`Placer`]'s table of partners, which is used again.

mod load;
mod order;
#[cfg(test)]
mod tests;

use crate::ids::DpRank;

pub use load::{Reported, cost};
use order::pick;
pub use order::{Draw, Held, Order};

/// How prefill and decode ranks belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// The decode rank has the prefill rank's number.
    Same,
    /// Any decode rank may follow any prefill rank.
    Any,
}

/// One DP rank of one pod, as the router sees it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which pod, by a number that no other pod of its side has.
    pub pod: usize,
    /// The rank.
    pub rank: DpRank,
    /// Stands for the rank wherever a choice must be the same in every router and after every restart.
    pub identity: u64,
    /// Whether new work may be sent there.
    pub ready: bool,
    /// How much it has to do, in tokens: [`cost`].
    pub cost: u64,
    /// Requests there, those of other routers included.
    pub requests: u32,
}

/// What a request asks for or rules out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// Only this prefill rank.
    pub prefill_rank: Option<DpRank>,
    /// Only this decode rank.
    pub decode_rank: Option<DpRank>,
    /// Only this prefill target: the prefill is done and only its decode side is chosen again.
    pub prefill_target: Option<(usize, DpRank)>,
    /// Prefill targets that have already failed this request.
    pub not_prefill: &'a [(usize, DpRank)],
    /// Decode targets that have already failed this request.
    pub not_decode: &'a [(usize, DpRank)],
}

/// How each side is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Orders<'a> {
    /// The prefill side.
    pub prefill: Order<'a>,
    /// The decode side.
    pub decode: Order<'a>,
}

/// Positions in the two candidate slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Where to prefill.
    pub prefill: usize,
    /// Where to decode.
    pub decode: usize,
}

/// Makes choices; keeps only the memory that they need.
#[derive(Debug, Default)]
pub struct Placer {
    /// The least cost among the decode ranks of each number; `None` where there is none.
    partners: Vec<Option<u64>>,
}

impl Placer {
    /// A ready pair that fits, by both sides' orders. `None` when there is none.
    pub fn choose(
        &mut self,
        pairing: Pairing,
        orders: &Orders<'_>,
        prefill: &[Candidate],
        decode: &[Candidate],
        wish: &Wish<'_>,
        draw: Draw,
    ) -> Option<Pair> {
        let may_prefill = |candidate: &Candidate| {
            let target = (candidate.pod, candidate.rank);
            let chosen = wish.prefill_target.is_none_or(|only| only == target);
            // A target that is already chosen has done its work: whether it takes more does not matter.
            (candidate.ready || wish.prefill_target.is_some())
                && chosen
                && wish.prefill_rank.is_none_or(|rank| rank == candidate.rank)
                && !wish.not_prefill.contains(&target)
        };
        let may_decode = |candidate: &Candidate| {
            candidate.ready
                && wish.decode_rank.is_none_or(|rank| rank == candidate.rank)
                && !wish.not_decode.contains(&(candidate.pod, candidate.rank))
        };
        match pairing {
            Pairing::Any => {
                let own = |may: bool, candidate: &Candidate| may.then_some(candidate.cost);
                let prefill = pick(&orders.prefill, prefill, draw, |it| own(may_prefill(it), it))?;
                let decode = pick(&orders.decode, decode, draw.other(), |it| own(may_decode(it), it))?;
                Some(Pair { prefill, decode })
            }
            Pairing::Same => {
                self.partners.clear();
                for candidate in decode.iter().filter(|candidate| may_decode(candidate)) {
                    let number = usize::from(candidate.rank.0);
                    if self.partners.len() <= number {
                        self.partners.resize(number + 1, None);
                    }
                    if let Some(least) = self.partners.get_mut(number) {
                        *least = Some(least.map_or(candidate.cost, |least| least.min(candidate.cost)));
                    }
                }
                let position = pick(&orders.prefill, prefill, draw, |candidate| {
                    let partner = self.partners.get(usize::from(candidate.rank.0)).copied().flatten()?;
                    may_prefill(candidate).then(|| candidate.cost.saturating_add(partner))
                })?;
                let rank = prefill.get(position)?.rank;
                // The same turn would tie a rank to one of the pods for good.
                let draw = draw.other().after(prefill.len());
                let partner = pick(&orders.decode, decode, draw, |candidate| {
                    (candidate.rank == rank && may_decode(candidate)).then_some(candidate.cost)
                })?;
                Some(Pair { prefill: position, decode: partner })
            }
        }
    }
}

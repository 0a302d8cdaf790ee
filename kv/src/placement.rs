//! Which prefill rank and which decode rank serve a request.
//!
//! Under [`Pairing::Same`] a request prefilled on rank `i` decodes on rank `i` (of any decode pod); under [`Pairing::Any`]
//! each side is chosen by itself. Among equals the choice rotates, so that idle ranks share the work.

use std::collections::BTreeMap;

use crate::ids::DpRank;

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
    /// Which pod, by its position in the router's list.
    pub pod: usize,
    /// The rank.
    pub rank: DpRank,
    /// Whether new work may be sent there.
    pub ready: bool,
    /// What it has to do.
    pub load: Load,
}

/// How much work a rank has. Compared field by field: our own requests first, since they are known at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// This router's requests there.
    pub in_flight: u32,
    /// Requests waiting in the engine.
    pub waiting: u32,
    /// Requests running in the engine.
    pub running: u32,
    /// KV-cache usage in per mille.
    pub kv_usage: u16,
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

/// Positions in the two candidate slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Where to prefill.
    pub prefill: usize,
    /// Where to decode.
    pub decode: usize,
}

/// Chooses the least loaded ready pair; `turn` (any counter) breaks ties. `None` when no ready pair fits.
pub fn choose(
    pairing: Pairing,
    prefill: &[Candidate],
    decode: &[Candidate],
    wish: &Wish<'_>,
    turn: usize,
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
            let prefill = least(prefill, turn, |candidate| may_prefill(candidate).then_some(candidate.load))?;
            let decode = least(decode, turn, |candidate| may_decode(candidate).then_some(candidate.load))?;
            Some(Pair { prefill, decode })
        }
        Pairing::Same => {
            let mut best_decode: BTreeMap<DpRank, Load> = BTreeMap::new();
            for candidate in decode.iter().filter(|candidate| may_decode(candidate)) {
                let best = best_decode.entry(candidate.rank).or_insert(candidate.load);
                *best = (*best).min(candidate.load);
            }
            let position = least(prefill, turn, |candidate| {
                let partner = best_decode.get(&candidate.rank).filter(|_| may_prefill(candidate))?;
                Some((candidate.load.in_flight.saturating_add(partner.in_flight), candidate.load, *partner))
            })?;
            let rank = prefill.get(position)?.rank;
            let partner = least(decode, turn, |candidate| {
                (candidate.rank == rank && may_decode(candidate)).then_some(candidate.load)
            })?;
            Some(Pair { prefill: position, decode: partner })
        }
    }
}

/// The position with the smallest cost; the first from `turn` on among equals.
fn least<C: Ord>(candidates: &[Candidate], turn: usize, cost: impl Fn(&Candidate) -> Option<C>) -> Option<usize> {
    let count = candidates.len();
    let start = turn.checked_rem(count)?;
    (0..count)
        .map(|step| (start + step) % count)
        .filter_map(|position| Some((cost(candidates.get(position)?)?, position)))
        .min_by(|(left, _), (right, _)| left.cmp(right))
        .map(|(_, position)| position)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranks(loads: &[u32]) -> Vec<Candidate> {
        let candidate = |(rank, in_flight): (u16, &u32)| Candidate {
            pod: 0,
            rank: DpRank(rank),
            ready: true,
            load: Load { in_flight: *in_flight, ..Load::default() },
        };
        (0u16..).zip(loads).map(candidate).collect()
    }

    fn choose_at(pairing: Pairing, prefill: &[Candidate], decode: &[Candidate], turn: usize) -> Option<(usize, usize)> {
        choose(pairing, prefill, decode, &Wish::default(), turn).map(|pair| (pair.prefill, pair.decode))
    }

    #[test]
    fn the_same_rank_is_chosen_by_both_sides_load() {
        let (prefill, decode) = (ranks(&[0, 1, 2]), ranks(&[9, 2, 0]));
        assert_eq!(choose_at(Pairing::Same, &prefill, &decode, 0), Some((2, 2)), "0+9, 1+2, 2+0");
        assert_eq!(choose_at(Pairing::Any, &prefill, &decode, 0), Some((0, 2)));
    }

    #[test]
    fn equals_take_turns() {
        let (prefill, decode) = (ranks(&[0, 0, 0]), ranks(&[0, 0, 0]));
        let chosen: Vec<_> = (0..4).filter_map(|turn| choose_at(Pairing::Same, &prefill, &decode, turn)).collect();
        assert_eq!(chosen, [(0, 0), (1, 1), (2, 2), (0, 0)]);
    }

    #[test]
    fn a_rank_that_is_not_ready_on_one_side_takes_its_partner_out() {
        let (prefill, mut decode) = (ranks(&[0, 5]), ranks(&[0, 5]));
        decode[0].ready = false;
        assert_eq!(choose_at(Pairing::Same, &prefill, &decode, 0), Some((1, 1)));
        assert_eq!(choose_at(Pairing::Any, &prefill, &decode, 0), Some((0, 1)));
        decode[1].ready = false;
        assert_eq!(choose_at(Pairing::Same, &prefill, &decode, 0), None);
        assert_eq!(choose_at(Pairing::Any, &[], &decode, 3), None);
    }

    #[test]
    fn wishes_and_past_failures_narrow_the_choice() {
        let (prefill, decode) = (ranks(&[0, 1]), ranks(&[0, 1]));
        let wish =
            |wish: Wish<'_>, pairing| choose(pairing, &prefill, &decode, &wish, 0).map(|p| (p.prefill, p.decode));
        let rank = Some(DpRank(1));
        assert_eq!(wish(Wish { decode_rank: rank, ..Wish::default() }, Pairing::Same), Some((1, 1)));
        assert_eq!(wish(Wish { decode_rank: rank, ..Wish::default() }, Pairing::Any), Some((0, 1)));
        let failed = [(0, DpRank(0))];
        assert_eq!(wish(Wish { not_prefill: &failed, ..Wish::default() }, Pairing::Same), Some((1, 1)));
        assert_eq!(wish(Wish { not_decode: &failed, ..Wish::default() }, Pairing::Any), Some((0, 1)));
        let done = Wish { prefill_target: Some((0, DpRank(0))), not_decode: &failed, ..Wish::default() };
        assert_eq!(wish(done, Pairing::Any), Some((0, 1)));
        assert_eq!(wish(done, Pairing::Same), None);
    }

    proptest! {
        #[test]
        fn a_choice_is_always_ready_and_paired_and_there_is_one_if_any(
            sides in (candidates(), candidates()), turn in any::<usize>(), same in any::<bool>()
        ) {
            let (prefill, decode) = sides;
            let pairing = if same { Pairing::Same } else { Pairing::Any };
            let fits = |p: &Candidate, d: &Candidate| p.ready && d.ready && (!same || p.rank == d.rank);
            let possible = prefill.iter().any(|p| decode.iter().any(|d| fits(p, d)));
            match choose(pairing, &prefill, &decode, &Wish::default(), turn) {
                Some(pair) => prop_assert!(fits(&prefill[pair.prefill], &decode[pair.decode])),
                None => prop_assert!(!possible),
            }
        }
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let candidate = (0usize..3, 0u16..8, any::<bool>(), 0u32..4).prop_map(|(pod, rank, ready, in_flight)| {
            Candidate { pod, rank: DpRank(rank), ready, load: Load { in_flight, ..Load::default() } }
        });
        prop::collection::vec(candidate, 0..12)
    }
}

//! Which ranks a request gets: [`kv::placement`] on the board's ranks, with what the client wished and what has failed.

use kv::ids::DpRank;
use kv::placement::{self, Load};

use crate::config::Pairing;
use crate::targets::{Board, Candidate, Side, Target};

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
    pub(crate) avoid: &'a Avoid,
    /// Breaks ties; any counter.
    pub(crate) turn: usize,
}

impl Terms<'_> {
    /// A prefill rank and a decode rank that go together, or `None` when no such pair is ready.
    pub(crate) fn pair(&self, board: &Board) -> Option<(Target, Target)> {
        self.chosen(&board.ranks(Side::Prefill), &board.ranks(Side::Decode), None)
    }

    /// Another decode rank for KV that a prefill rank holds already. Ranks that have failed are not taken again: a new prefill
    /// elsewhere is the better way then.
    pub(crate) fn decode_for(&self, board: &Board, prefill: &Target) -> Option<Target> {
        let (prefills, decodes) = (board.ranks(Side::Prefill), board.ranks(Side::Decode));
        self.once(&prefills, &decodes, Some(key(prefill)), true).map(|(_, decode)| decode)
    }

    /// A decode rank that does a whole request by itself.
    pub(crate) fn alone(&self, board: &Board) -> Option<Target> {
        let terms = Terms { pairing: Pairing::Any, wish: Wish { prefill: None, ..self.wish }, ..*self };
        let decodes = board.ranks(Side::Decode);
        terms.chosen(&decodes, &decodes, None).map(|(_, decode)| decode)
    }

    fn chosen(
        &self,
        prefills: &[Candidate],
        decodes: &[Candidate],
        done: Option<(usize, DpRank)>,
    ) -> Option<(Target, Target)> {
        self.once(prefills, decodes, done, true).or_else(|| self.once(prefills, decodes, done, false))
    }

    fn once(
        &self,
        prefills: &[Candidate],
        decodes: &[Candidate],
        done: Option<(usize, DpRank)>,
        with_unlucky: bool,
    ) -> Option<(Target, Target)> {
        let not_prefill = if done.is_some() { Vec::new() } else { self.avoid.lists(Side::Prefill, with_unlucky) };
        let not_decode = self.avoid.lists(Side::Decode, with_unlucky);
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
        let figures = |side: &[Candidate]| side.iter().map(figure).collect::<Vec<_>>();
        let pair = placement::choose(pairing, &figures(prefills), &figures(decodes), &wish, self.turn)?;
        Some((prefills.get(pair.prefill)?.target.clone(), decodes.get(pair.decode)?.target.clone()))
    }
}

fn figure(candidate: &Candidate) -> placement::Candidate {
    let count = |reported: u64| u32::try_from(reported).unwrap_or(u32::MAX);
    placement::Candidate {
        pod: candidate.target.pod.id.index,
        rank: candidate.target.rank,
        ready: candidate.view.ready,
        load: Load {
            in_flight: candidate.occupied,
            waiting: count(candidate.view.waiting),
            running: count(candidate.view.running),
            kv_usage: 0,
        },
    }
}

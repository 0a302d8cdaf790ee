//! Who has seen the beginning of a prompt: an approximate prefix tree, as a table from the hash of every beginning (whole blocks)
//! to the ranks that got a prompt which begins so. Bounded: two generations, of which the older is forgotten when the newer is full.

use std::collections::HashMap;

use kv::ids::DpRank;

/// Ranks remembered per beginning, the latest first; more copies of a beginning than these hardly make a better choice.
const RANKS: usize = 4;

/// A rank, by its pod's number and its own.
pub(super) type Holder = (usize, DpRank);

#[derive(Clone, Copy, Debug, Default)]
struct Seen([Option<Holder>; RANKS]);

impl Seen {
    fn add(&mut self, holder: Holder) {
        let at = self.0.iter().position(|known| *known == Some(holder)).unwrap_or(RANKS - 1);
        if let Some(newest) = self.0.get_mut(..=at) {
            newest.rotate_right(1);
        }
        self.0[0] = Some(holder);
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Prefixes {
    young: HashMap<u64, Seen>,
    old: HashMap<u64, Seen>,
    generation: usize,
}

impl Prefixes {
    /// Room for about so many blocks.
    pub(super) fn new(blocks: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), generation: (blocks / 2).max(1) }
    }

    /// Who holds how many blocks of a prompt, from the first without a gap.
    pub(super) fn holders(&self, blocks: &[u64]) -> Vec<(Holder, u32)> {
        let mut held: Vec<(Holder, u32)> = Vec::new();
        for (depth, block) in (0_u32..).zip(blocks) {
            let Some(seen) = self.young.get(block).or_else(|| self.old.get(block)) else { break };
            let mut any = false;
            for holder in seen.0.iter().flatten() {
                if depth == 0 {
                    held.push((*holder, 1));
                    any = true;
                } else if let Some((_, blocks)) = held.iter_mut().find(|(of, blocks)| of == holder && *blocks == depth)
                {
                    *blocks = depth + 1;
                    any = true;
                }
            }
            if !any {
                break;
            }
        }
        held
    }

    /// A prompt goes to this rank.
    pub(super) fn add(&mut self, blocks: &[u64], holder: Holder) {
        for block in blocks {
            if self.young.len() >= self.generation && !self.young.contains_key(block) {
                self.old = std::mem::take(&mut self.young);
            }
            let old = &mut self.old;
            self.young.entry(*block).or_insert_with(|| old.remove(block).unwrap_or_default()).add(holder);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Holder = (0, DpRank(0));
    const B: Holder = (0, DpRank(1));

    #[test]
    fn each_rank_holds_what_it_got_without_gaps() {
        let mut prefixes = Prefixes::new(100);
        prefixes.add(&[1, 2, 3, 4], A);
        prefixes.add(&[1, 2, 9], B);
        assert_eq!(prefixes.holders(&[1, 2, 3, 4, 5]), [(B, 2), (A, 4)]);
        assert_eq!(prefixes.holders(&[1, 2, 9]), [(B, 3), (A, 2)]);
        assert_eq!(prefixes.holders(&[9]), [(B, 1)]);
        assert_eq!(prefixes.holders(&[7]), []);
    }

    #[test]
    fn the_latest_ranks_are_remembered() {
        let mut prefixes = Prefixes::new(100);
        for rank in 0..6 {
            prefixes.add(&[1], (0, DpRank(rank)));
        }
        prefixes.add(&[1], (0, DpRank(4)));
        let ranks: Vec<u16> = prefixes.holders(&[1]).into_iter().map(|((_, rank), _)| rank.0).collect();
        assert_eq!(ranks, [4, 5, 3, 2]);
    }

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let mut prefixes = Prefixes::new(20);
        for other in 0..1000 {
            prefixes.add(&[1, 2], A);
            prefixes.add(&[1000 + other], B);
            assert!(prefixes.len() <= 20);
        }
        assert_eq!(prefixes.holders(&[1, 2]), [(A, 2)]);
        assert_eq!(prefixes.holders(&[1000]), []);
        assert_eq!(prefixes.holders(&[1999]), [(B, 1)]);
    }

    proptest! {
        #[test]
        fn nobody_holds_more_than_it_got(
            prompts in prop::collection::vec((prop::collection::vec(0_u8..3, 0..6), 0_u16..3), 0..20),
            asked in prop::collection::vec(0_u8..3, 0..6)
        ) {
            // A block's hash stands for all that is before it.
            let chain = |text: &[u8]| (1..=text.len()).map(|end| xxhash_rust::xxh3::xxh3_64(&text[..end])).collect::<Vec<_>>();
            let mut prefixes = Prefixes::new(1000);
            for (text, rank) in &prompts {
                prefixes.add(&chain(text), (0, DpRank(*rank)));
            }
            let common = |text: &[u8]| text.iter().zip(&asked).take_while(|(a, b)| a == b).count();
            let holders = prefixes.holders(&chain(&asked));
            for rank in 0..3 {
                let got = prompts.iter().filter(|(_, to)| *to == rank).map(|(text, _)| common(text)).max().unwrap_or(0);
                let held = holders.iter().find(|((_, of), _)| of.0 == rank).map_or(0, |(_, blocks)| *blocks);
                prop_assert_eq!(usize::try_from(held).unwrap(), got);
            }
        }
    }
}

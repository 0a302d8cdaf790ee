//! Which blocks of tokens each rank has in its prefix cache, as its engine says. A block is known by the hash of all tokens from
//! the prompt's beginning to its end, which the router computes itself: engines' own names for blocks differ from one start to
//! the next. Pure.

use std::collections::{BTreeMap, HashMap};

use vllm_wire::kv_events::KvEvent;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::prefixes::Holder;

/// Blocks that one rank may hold; an engine that says that it has more begins anew here.
const MOST: usize = 1 << 20;

/// Names of the beginnings of a prompt, whole blocks each.
pub(super) fn token_chain(tokens: &[u32], block_size: u32) -> Vec<u64> {
    let size = usize::try_from(block_size).unwrap_or(usize::MAX).max(1);
    let mut last = 0;
    let next = |block: &[u32]| {
        last = link(last, block);
        last
    };
    tokens.chunks_exact(size).map(next).collect()
}

fn link(before: u64, block: &[u32]) -> u64 {
    let bytes: Vec<u8> = block.iter().flat_map(|token| token.to_le_bytes()).collect();
    xxh3_64_with_seed(&bytes, before)
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct HeldBlocks {
    holders: HashMap<u64, Vec<Holder>>,
    /// Per rank: the engine's names to ours.
    names: BTreeMap<Holder, HashMap<u64, u64>>,
    /// Tokens of one block, as last heard; 0 before.
    block_size: u32,
}

impl HeldBlocks {
    /// Tokens of one block; 0 while nothing is known.
    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Blocks that a rank is known to hold.
    pub(super) fn count(&self, holder: Holder) -> usize {
        self.names.get(&holder).map_or(0, HashMap::len)
    }

    /// Takes in what a rank's engine says.
    pub(super) fn apply(&mut self, holder: Holder, event: &KvEvent) {
        match event {
            KvEvent::Cleared => self.forget(holder),
            KvEvent::Removed { blocks } => {
                let Some(names) = self.names.get_mut(&holder) else { return };
                for block in blocks {
                    if let Some(ours) = names.remove(block) {
                        leave(&mut self.holders, ours, holder);
                    }
                }
            }
            KvEvent::Stored { blocks, parent, tokens, block_size } => {
                self.block_size = *block_size;
                if self.count(holder) + blocks.len() > MOST {
                    self.forget(holder);
                }
                let names = self.names.entry(holder).or_default();
                let mut last = match parent {
                    None => 0,
                    Some(parent) => match names.get(parent) {
                        Some(ours) => *ours,
                        // Of what came before it nothing was heard: where in a prompt it belongs is unknown.
                        None => return,
                    },
                };
                let size = usize::try_from(*block_size).unwrap_or(usize::MAX).max(1);
                for (block, tokens) in blocks.iter().zip(tokens.chunks_exact(size)) {
                    last = link(last, tokens);
                    if names.insert(*block, last) != Some(last) {
                        let holders = self.holders.entry(last).or_default();
                        if !holders.contains(&holder) {
                            holders.push(holder);
                        }
                    }
                }
            }
        }
    }

    /// Nothing is known of a rank's cache any more.
    pub(super) fn forget(&mut self, holder: Holder) {
        for (_, ours) in self.names.remove(&holder).into_iter().flatten() {
            leave(&mut self.holders, ours, holder);
        }
    }

    /// Who holds how many blocks of a prompt, from the first without a gap.
    pub(super) fn holders(&self, chain: &[u64]) -> Vec<(Holder, u32)> {
        let first = chain.first().and_then(|first| self.holders.get(first));
        let mut held: Vec<(Holder, u32)> = first.into_iter().flatten().map(|holder| (*holder, 1)).collect();
        for (depth, block) in (1_u32..).zip(chain.iter().skip(1)) {
            let Some(holders) = self.holders.get(block) else { break };
            for (holder, blocks) in held.iter_mut().filter(|(_, blocks)| *blocks == depth) {
                if holders.contains(holder) {
                    *blocks = depth + 1;
                }
            }
        }
        held
    }
}

fn leave(all: &mut HashMap<u64, Vec<Holder>>, block: u64, holder: Holder) {
    if let Some(holders) = all.get_mut(&block) {
        holders.retain(|known| *known != holder);
        if holders.is_empty() {
            all.remove(&block);
        }
    }
}

#[cfg(test)]
mod tests {
    use kv::ids::DpRank;

    use super::*;

    const A: Holder = (0, DpRank(0));
    const B: Holder = (0, DpRank(1));

    fn stored(blocks: &[u64], parent: Option<u64>, tokens: &[u32]) -> KvEvent {
        KvEvent::Stored { blocks: blocks.to_vec(), parent, tokens: tokens.to_vec(), block_size: 2 }
    }

    #[test]
    fn blocks_are_found_by_their_tokens_whatever_the_engines_call_them() {
        let mut held = HeldBlocks::default();
        held.apply(A, &stored(&[1, 2], None, &[5, 6, 7, 8]));
        held.apply(B, &stored(&[9], None, &[5, 6]));
        held.apply(B, &stored(&[10], Some(9), &[7, 7]));
        let chain = |tokens: &[u32]| token_chain(tokens, held.block_size());
        assert_eq!(held.holders(&chain(&[5, 6, 7, 8, 1])), [(A, 2), (B, 1)]);
        assert_eq!(held.holders(&chain(&[5, 6, 7, 7])), [(A, 1), (B, 2)]);
        assert_eq!(held.holders(&chain(&[7, 8])), [], "the same tokens elsewhere in a prompt are another block");
        assert_eq!(held.holders(&chain(&[5])), [], "less than a block");
    }

    #[test]
    fn what_has_left_the_cache_is_not_found() {
        let mut held = HeldBlocks::default();
        held.apply(A, &stored(&[1, 2, 3], None, &[1, 1, 2, 2, 3, 3]));
        held.apply(B, &stored(&[1], None, &[1, 1]));
        let chain = token_chain(&[1, 1, 2, 2, 3, 3], 2);
        held.apply(A, &KvEvent::Removed { blocks: vec![2, 77] });
        assert_eq!(held.holders(&chain), [(A, 1), (B, 1)], "a gap ends it");
        held.apply(A, &stored(&[4], Some(1), &[2, 2]));
        assert_eq!(held.holders(&chain), [(A, 3), (B, 1)], "stored again under another name");
        held.apply(A, &KvEvent::Cleared);
        assert_eq!((held.holders(&chain), held.count(A)), (vec![(B, 1)], 0));
        held.forget(B);
        assert!(held.holders.is_empty() && held.names.is_empty());
    }

    #[test]
    fn a_block_whose_beginning_was_missed_counts_for_nothing() {
        let mut held = HeldBlocks::default();
        held.apply(A, &stored(&[2], Some(1), &[2, 2]));
        assert_eq!(held.count(A), 0);
    }
}

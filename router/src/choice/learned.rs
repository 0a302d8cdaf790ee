//! Which tokens a text becomes, as far as engines have said: prefills of text chats name their prompt's tokens. A text that begins
//! like a known one is taken to have about the same share of its tokens. A guess: it only decides who is asked.

use std::collections::HashMap;
use std::sync::Arc;

use super::held_blocks::token_chain;

/// Tokens at the end of a common beginning that may be cut otherwise in the other text.
const UNSURE: usize = 4;

/// A beginning of a text: the known prompt that has it, and how many of its blocks of tokens lie within.
#[derive(Clone, Debug)]
struct Known(Arc<[u64]>, usize);

/// The table: bounded by two generations, of which the older is forgotten when the newer is full.
#[derive(Debug)]
pub(super) struct Learned {
    young: HashMap<u64, Known>,
    old: HashMap<u64, Known>,
    generation: usize,
}

impl Learned {
    /// Room for about so many beginnings.
    pub(super) fn new(beginnings: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), generation: (beginnings / 2).max(1) }
    }

    /// A text with the hashes of its beginnings, of `text_block` bytes each, and the hash of its whole; and its tokens.
    pub(super) fn learn(&mut self, text: &Text<'_>, tokens: &[u32], block_size: u32) {
        if block_size == 0 || text.bytes == 0 {
            return;
        }
        let chain: Arc<[u64]> = token_chain(tokens, block_size).into();
        self.put(text.whole, Known(Arc::clone(&chain), chain.len()));
        let size = usize::try_from(block_size).unwrap_or(usize::MAX);
        for (end, beginning) in (1_usize..).zip(text.beginnings) {
            let share = tokens.len().saturating_mul(end.saturating_mul(text.block)) / text.bytes;
            let blocks = (share.saturating_sub(UNSURE) / size).min(chain.len());
            if blocks > 0 {
                self.put(*beginning, Known(Arc::clone(&chain), blocks));
            }
        }
    }

    /// The blocks of tokens that a text begins with, as far as is known.
    pub(super) fn blocks(&self, text: &Text<'_>) -> Vec<u64> {
        let find = |hash: &u64| self.young.get(hash).or_else(|| self.old.get(hash));
        let known = find(&text.whole).or_else(|| text.beginnings.iter().rev().find_map(find));
        known.and_then(|Known(chain, blocks)| chain.get(..*blocks)).map(<[u64]>::to_vec).unwrap_or_default()
    }

    fn put(&mut self, hash: u64, known: Known) {
        if self.young.len() >= self.generation && !self.young.contains_key(&hash) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, known);
    }
}

/// A text by its hashes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    pub(super) beginnings: &'a [u64],
    pub(super) whole: u64,
    /// Bytes of each step between beginnings.
    pub(super) block: usize,
    /// Bytes of the whole.
    pub(super) bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_the_tokens_of_its_known_beginning() {
        let mut learned = Learned::new(100);
        let tokens: Vec<u32> = (0..100).collect();
        let chain = token_chain(&tokens, 10);
        let text = Text { beginnings: &[1, 2, 3], whole: 9, block: 100, bytes: 400 };
        learned.learn(&text, &tokens, 10);
        assert_eq!(learned.blocks(&text), chain, "the very same text");
        assert_eq!(learned.blocks(&Text { whole: 8, ..text }), chain[..7], "three quarters of it, less what is unsure");
        assert_eq!(learned.blocks(&Text { whole: 8, beginnings: &[1, 5, 6, 7], ..text }), chain[..2]);
        assert!(learned.blocks(&Text { whole: 8, beginnings: &[5], ..text }).is_empty());
        learned.learn(&Text { whole: 7, beginnings: &[], ..text }, &tokens, 0);
        assert!(learned.blocks(&Text { whole: 7, beginnings: &[], ..text }).is_empty(), "no block size, no blocks");
    }

    #[test]
    fn it_is_bounded() {
        let mut learned = Learned::new(10);
        for whole in 0..1000 {
            learned.learn(&Text { beginnings: &[], whole, block: 100, bytes: 10 }, &[1, 2], 1);
            assert!(learned.young.len() + learned.old.len() <= 10);
        }
    }
}

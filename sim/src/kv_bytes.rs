//! What a block's bytes are: a fast keyed function of the tokens up to its end, its place, its layer and its TP shard.
//!
//! The seed plays the part of the model's weights: engines with the same seed compute the same KV for the same prompt,
//! whichever rank or process they are. The word stream is a multiplicative hash of a counter: independent words, so it
//! runs at several GB/s, and any two pages differ in nearly every word.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128_with_seed};

/// Identity of a block's contents: a hash of the seed and of all tokens up to the block's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey(pub u128);

/// Bytes that are generated or digested at a time.
pub const CHUNK_BYTES: usize = 1024 * 1024;

/// The key of each block of a prompt, in order; the last block may be partly filled.
pub fn block_keys(seed: u64, tokens: &[u32], block_size: usize) -> Vec<BlockKey> {
    let mut parent = 0u128;
    let mut message = Vec::with_capacity(16 + block_size * 4);
    let block_key = |block: &[u32]| {
        message.clear();
        message.extend_from_slice(&parent.to_le_bytes());
        for token in block {
            message.extend_from_slice(&token.to_le_bytes());
        }
        parent = xxh3_128_with_seed(&message, seed);
        BlockKey(parent)
    };
    tokens.chunks(block_size.max(1)).map(block_key).collect()
}

/// One page's place in the model: which contents, which position in the prompt, which layer, which shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageKey {
    /// The block's contents.
    pub block: BlockKey,
    /// Its index in the prompt.
    pub position: u32,
    /// Layer.
    pub layer: u32,
    /// TP shard.
    pub shard: u16,
}

/// The word stream of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageStream(u64);

impl PageStream {
    /// The stream that belongs to a page.
    pub fn new(page: PageKey) -> Self {
        let mut message = [0u8; 26];
        let parts: [&[u8]; 4] = [
            &page.block.0.to_le_bytes(),
            &page.position.to_le_bytes(),
            &page.layer.to_le_bytes(),
            &page.shard.to_le_bytes(),
        ];
        for (slot, byte) in message.iter_mut().zip(parts.into_iter().flatten()) {
            *slot = *byte;
        }
        Self(xxh3_64(&message))
    }

    /// Writes the stream's bytes from word `first_word` on.
    pub fn write(self, first_word: u64, out: &mut [u8]) {
        let mut counter = self.0.wrapping_add(first_word.wrapping_mul(STEP));
        let mut words = out.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&mix(counter).to_le_bytes());
            counter = counter.wrapping_add(STEP);
        }
        for (slot, byte) in words.into_remainder().iter_mut().zip(mix(counter).to_le_bytes()) {
            *slot = byte;
        }
    }
}

/// Adds a chunk of KV bytes to a digest.
pub fn digest(so_far: u64, chunk: &[u8]) -> u64 {
    xxh3_64_with_seed(chunk, so_far)
}

/// An odd step, so that the counter takes every value: 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Another odd constant with about as many ones as zeros: 2^64 divided by the plastic number.
const FACTOR: u64 = 0xc13f_a9a9_02a6_328f;

/// Both halves of one full product: a single multiplication per word, and every bit of the counter counts.
#[expect(clippy::cast_possible_truncation, reason = "the two halves of the product")]
fn mix(counter: u64) -> u64 {
    let product = u128::from(counter) * u128::from(FACTOR);
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(position: u32, layer: u32, shard: u16) -> PageKey {
        PageKey { block: BlockKey(7), position, layer, shard }
    }

    #[test]
    fn keys_chain_over_the_whole_prefix() {
        let a = block_keys(1, &[1, 2, 3, 4, 5], 2);
        let b = block_keys(1, &[1, 2, 3, 9, 5], 2);
        assert_eq!(a.len(), 3);
        assert_eq!(a[0], b[0]);
        assert_ne!(a[1], b[1]);
        assert_ne!(a[2], b[2], "a later block depends on every token before it");
        assert_ne!(block_keys(2, &[1, 2], 2), block_keys(1, &[1, 2], 2), "the seed is the model");
    }

    #[test]
    fn every_place_has_its_own_bytes_and_chunks_join_up() {
        let mut whole = [0u8; 64];
        PageStream::new(page(0, 0, 0)).write(0, &mut whole);
        let mut halves = [0u8; 64];
        let (first, second) = halves.split_at_mut(32);
        PageStream::new(page(0, 0, 0)).write(0, first);
        PageStream::new(page(0, 0, 0)).write(4, second);
        assert_eq!(whole, halves);
        for other in [page(1, 0, 0), page(0, 1, 0), page(0, 0, 1)] {
            let mut bytes = [0u8; 64];
            PageStream::new(other).write(0, &mut bytes);
            assert_ne!(whole, bytes);
        }
        let mut odd = [0u8; 11];
        PageStream::new(page(0, 0, 0)).write(0, &mut odd);
        assert_eq!(odd, whole[..11]);
    }
}

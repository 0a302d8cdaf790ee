//! The digest of a page: XXH64 (seed 0) of each chunk of 4 KiB, then XXH64 of the chunks' digests in order.
//!
//! In two steps, so that a GPU can take the chunks of a page side by side (`cuda/kernels/digest.cuh` computes the same).

use xxhash_rust::xxh64::{Xxh64, xxh64};

/// Bytes of a chunk; a page's last one may be shorter.
pub const CHUNK: usize = 4096;

/// What this way of digesting is called on the wire.
pub const ALGORITHM: &str = "xxh64-4k";

/// A page's digest that grows piece by piece, however its bytes are cut.
#[derive(Clone)]
pub struct PageDigest {
    /// Of the chunks that are whole, as little-endian words.
    page: Xxh64,
    /// Of the chunk that is not whole yet.
    chunk: Xxh64,
    filled: usize,
}

impl std::fmt::Debug for PageDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageDigest").field("filled", &self.filled).finish_non_exhaustive()
    }
}

impl Default for PageDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl PageDigest {
    /// Over nothing yet.
    pub fn new() -> Self {
        Self { page: Xxh64::new(0), chunk: Xxh64::new(0), filled: 0 }
    }

    /// Goes on with the page's next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.filled));
            bytes = later;
            if now.len() == CHUNK {
                self.whole_chunk(xxh64(now, 0));
                continue;
            }
            self.chunk.update(now);
            self.filled += now.len();
            if self.filled == CHUNK {
                self.close_chunk();
            }
        }
    }

    /// Goes on with the digest of the page's next chunk, taken elsewhere. What was given before must end on a chunk's border; the page's
    /// last chunk may be shorter than [`CHUNK`].
    pub fn whole_chunk(&mut self, digest: u64) {
        self.page.update(&digest.to_le_bytes());
    }

    /// The digest of what was given; the next page begins.
    pub fn end(&mut self) -> u64 {
        if self.filled > 0 {
            self.close_chunk();
        }
        let digest = self.page.digest();
        self.page.reset(0);
        digest
    }

    fn close_chunk(&mut self) {
        let digest = self.chunk.digest();
        self.whole_chunk(digest);
        self.chunk.reset(0);
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As it is said in words.
    fn in_words(page: &[u8]) -> u64 {
        let chunks: Vec<u8> = page.chunks(CHUNK).flat_map(|chunk| xxh64(chunk, 0).to_le_bytes()).collect();
        xxh64(&chunks, 0)
    }

    proptest! {
        #[test]
        fn it_does_not_depend_on_how_the_bytes_are_cut(len in 0_usize..20_000, mut cuts in prop::collection::vec(0_usize..20_000, 0..8)) {
            let page: Vec<u8> = (0..len).map(|at| u8::try_from((at * 31 + at / 255) % 256).unwrap()).collect();
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(len));
            cuts.extend([0, len]);
            cuts.sort_unstable();
            let mut digest = PageDigest::new();
            // Twice: the end of a page begins the next.
            for _ in 0..2 {
                cuts.windows(2).for_each(|cut| digest.update(&page[cut[0]..cut[1]]));
                prop_assert_eq!(digest.end(), in_words(&page));
            }
            page.chunks(CHUNK).for_each(|chunk| digest.whole_chunk(xxh64(chunk, 0)));
            prop_assert_eq!(digest.end(), in_words(&page));
        }
    }

    #[test]
    fn known_values_stay() {
        // Two sidecars of different builds compare these: a change needs another ALGORITHM.
        let mut digest = PageDigest::new();
        assert_eq!(digest.end(), 0xef46_db37_51d8_e999);
        digest.update(&[7; 4097]);
        assert_eq!((digest.end(), ALGORITHM), (in_words(&[7; 4097]), "xxh64-4k"));
        assert_ne!(in_words(&[7; 4097]), xxh64(&[7; 4097], 0));
    }
}

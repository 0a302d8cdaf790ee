//! The size of one rank's KV cache and where a block lies in it.
//!
//! One arena per DP rank and TP shard, region-major: region = layer, `num_blocks` pages each, stride equal to the page.
//! This is vLLM's dense layout `LBHNC` (`docs/vllm-nixl-protocol.md` §2.1) with K and V fused in one page.

use kv::ids::BlockId;

/// The geometry of one rank's cache, the same for every rank of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Attention layers: one region each.
    pub layers: u32,
    /// KV heads over all TP shards.
    pub kv_heads: u32,
    /// Elements per head.
    pub head_size: u32,
    /// Bytes per element.
    pub dtype_bytes: u32,
    /// Tokens per block.
    pub block_tokens: u32,
    /// Blocks per rank, block 0 (never handed out, as in vLLM) included.
    pub num_blocks: u32,
    /// TP shards per rank; each holds `kv_heads / tensor_parallel` heads.
    pub tensor_parallel: u16,
}

/// Why a geometry cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// A size that must not be 0.
    #[error("--{0} must be at least 1")]
    Zero(&'static str),
    /// Heads that do not divide among the shards.
    #[error("--kv-heads {kv_heads} cannot be divided among --tensor-parallel-size {tensor_parallel} shards")]
    Heads {
        /// KV heads in all.
        kv_heads: u32,
        /// TP shards.
        tensor_parallel: u16,
    },
    /// Block 0 is reserved, so one block is no cache.
    #[error("--num-blocks must be at least 2: block 0 is never handed out")]
    TooFewBlocks,
    /// More bytes than this machine can address.
    #[error("the arena of one shard is larger than an address can say")]
    TooLarge,
}

impl Geometry {
    /// Checks what every later computation relies on.
    ///
    /// # Errors
    /// The first [`GeometryError`] found.
    pub fn checked(self) -> Result<Self, GeometryError> {
        let sizes = [
            ("layers", self.layers),
            ("kv-heads", self.kv_heads),
            ("head-size", self.head_size),
            ("dtype-bytes", self.dtype_bytes),
            ("block-size", self.block_tokens),
            ("tensor-parallel-size", u32::from(self.tensor_parallel)),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(GeometryError::Zero(name));
        }
        if self.num_blocks < 2 {
            return Err(GeometryError::TooFewBlocks);
        }
        if !self.kv_heads.is_multiple_of(u32::from(self.tensor_parallel)) {
            let (kv_heads, tensor_parallel) = (self.kv_heads, self.tensor_parallel);
            return Err(GeometryError::Heads { kv_heads, tensor_parallel });
        }
        let page = [self.head_size, self.dtype_bytes, self.block_tokens, 2]
            .into_iter()
            .try_fold(u64::from(self.kv_heads), |bytes, factor| bytes.checked_mul(u64::from(factor)));
        let arena = page
            .and_then(|page| page.checked_mul(u64::from(self.layers)))
            .and_then(|all| all.checked_mul(u64::from(self.num_blocks)));
        match arena {
            Some(bytes) if usize::try_from(bytes).is_ok_and(|bytes| isize::try_from(bytes).is_ok()) => Ok(self),
            Some(_) | None => Err(GeometryError::TooLarge),
        }
    }

    /// Bytes of one block in one layer of one TP shard: the unit of every descriptor.
    pub fn page_bytes(&self) -> u64 {
        let heads = u64::from(self.kv_heads) / u64::from(self.tensor_parallel.max(1));
        heads * u64::from(self.block_tokens) * 2 * u64::from(self.head_size) * u64::from(self.dtype_bytes)
    }

    /// Bytes of one region (layer) of one shard.
    pub fn region_bytes(&self) -> u64 {
        self.page_bytes() * u64::from(self.num_blocks)
    }

    /// Bytes of the whole arena of one shard.
    pub fn arena_bytes(&self) -> u64 {
        self.region_bytes() * u64::from(self.layers)
    }

    /// Bytes of KV per token over all layers and shards.
    pub fn token_bytes(&self) -> u64 {
        u64::from(self.kv_heads) * 2 * u64::from(self.head_size) * u64::from(self.dtype_bytes) * u64::from(self.layers)
    }

    /// Where a block's page of `layer` starts in a shard's arena.
    pub fn offset(&self, layer: u32, block: BlockId) -> u64 {
        u64::from(layer) * self.region_bytes() + u64::from(block.0) * self.page_bytes()
    }

    /// Blocks that `tokens` tokens fill, the last one perhaps partly.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size())
    }

    /// Tokens per block, as a count of elements.
    pub fn block_size(&self) -> usize {
        usize::try_from(self.block_tokens).unwrap_or(usize::MAX).max(1)
    }

    /// Tokens that one rank's cache can hold at most.
    pub fn capacity_tokens(&self) -> u64 {
        u64::from(self.num_blocks.saturating_sub(1)) * u64::from(self.block_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) const LLAMA: Geometry = Geometry {
        layers: 32,
        kv_heads: 8,
        head_size: 128,
        dtype_bytes: 2,
        block_tokens: 16,
        num_blocks: 512,
        tensor_parallel: 1,
    };

    #[test]
    fn the_seed_geometry_is_128_kib_per_token() {
        assert_eq!(LLAMA.token_bytes(), 128 * 1024);
        assert_eq!(LLAMA.page_bytes(), 64 * 1024);
        assert_eq!(LLAMA.arena_bytes(), 512 * 16 * 128 * 1024);
        assert_eq!(LLAMA.offset(1, BlockId(2)), LLAMA.region_bytes() + 2 * 64 * 1024);
        assert_eq!([1, 15, 16, 17].map(|tokens| LLAMA.blocks_for(tokens)), [1, 1, 1, 2]);
    }

    #[test]
    fn a_shard_holds_its_share_of_the_heads() {
        let halved = Geometry { tensor_parallel: 2, ..LLAMA };
        assert_eq!(halved.page_bytes(), LLAMA.page_bytes() / 2);
        assert_eq!(halved.token_bytes(), LLAMA.token_bytes());
    }

    #[test]
    fn impossible_sizes_are_refused_by_flag_name() {
        let check = |geometry: Geometry, words: &str| {
            assert!(geometry.checked().unwrap_err().to_string().contains(words), "{words}");
        };
        check(Geometry { layers: 0, ..LLAMA }, "--layers");
        check(Geometry { num_blocks: 1, ..LLAMA }, "--num-blocks");
        check(Geometry { tensor_parallel: 3, ..LLAMA }, "--tensor-parallel-size 3");
        check(Geometry { num_blocks: u32::MAX, layers: u32::MAX, ..LLAMA }, "larger than an address");
        assert_eq!(LLAMA.checked(), Ok(LLAMA));
    }
}

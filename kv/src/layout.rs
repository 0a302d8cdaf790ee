//! The geometry of a KV cache: where block `b` of region `r` lies, and whether two caches can exchange blocks.
//!
//! Source of the fields: vLLM's `NixlAgentMetadata` (`docs/vllm-nixl-protocol.md` §1.4, §2). A *kernel* block is what the
//! arrays count; a *logical* block (the scheduler's, the one on the wire) is `kernel_per_logical` of them.

/// What kind of memory a cache or an arena lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemoryKind {
    /// Host memory.
    Dram,
    /// GPU memory.
    Vram,
}

/// Which KV-cache groups a region belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionGroup {
    /// One group, by index.
    One(u16),
    /// Shared by all groups (`-1` on the wire).
    Shared,
}

/// One region: usually one attention layer's pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// Name of its first layer; empty when the engine gives none.
    pub name: String,
    /// Virtual address of kernel block 0 in its owner's process.
    pub base: u64,
    /// Bytes of one kernel block.
    pub block_len: u64,
    /// Bytes between consecutive kernel blocks; at least `block_len`.
    pub block_stride: u64,
    /// Kernel blocks in this region.
    pub num_blocks: u32,
    /// The groups that use it.
    pub group: RegionGroup,
}

/// A whole cache of one DP rank and TP shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// The regions in wire order.
    pub regions: Vec<RegionLayout>,
    /// Kernel blocks per logical block ("ppl").
    pub kernel_per_logical: u32,
    /// Tokens per kernel block.
    pub kernel_block_tokens: u32,
    /// vLLM's layout word, e.g. `LBHNC`.
    pub layout: String,
    /// The attention back end; its packing of bytes is opaque to us, so both ends must have the same.
    pub backend: String,
    /// Where it lies.
    pub memory: MemoryKind,
    /// NIXL's device id: 0 in DRAM, else the GPU's index.
    pub device: u64,
}

/// Why a layout is refused by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No region.
    #[error("the cache has no region")]
    NoRegion,
    /// A size that must not be 0.
    #[error("{0} is 0")]
    Zero(&'static str),
    /// A stride shorter than the block it separates.
    #[error("region {region}: stride {stride} is below its block length {block_len}")]
    StrideBelowBlock {
        /// Index of the region.
        region: usize,
        /// Bytes.
        stride: u64,
        /// Bytes.
        block_len: u64,
    },
    /// A region whose end is past what an address can say.
    #[error("region {region}: its end is past the address space")]
    Overflow {
        /// Index of the region.
        region: usize,
    },
}

/// Why blocks of one cache cannot be used by another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutMismatch {
    /// Different numbers of regions.
    #[error("{ours} regions here, {theirs} there")]
    RegionCount {
        /// This side's.
        ours: usize,
        /// The other side's.
        theirs: usize,
    },
    /// A number that must be equal is not.
    #[error("{what} is {ours} here, {theirs} there")]
    Number {
        /// Which.
        what: &'static str,
        /// This side's.
        ours: u64,
        /// The other side's.
        theirs: u64,
    },
    /// A word that must be equal is not.
    #[error("{what} is {ours:?} here, {theirs:?} there")]
    Word {
        /// Which.
        what: &'static str,
        /// This side's.
        ours: String,
        /// The other side's.
        theirs: String,
    },
    /// One region differs.
    #[error("region {region}: {what} differs")]
    Region {
        /// Index of the region.
        region: usize,
        /// Which property.
        what: &'static str,
    },
}

impl RegionLayout {
    /// One past the last byte that the region's blocks span; `None` when that overflows.
    pub fn end(&self) -> Option<u64> {
        self.base.checked_add(self.block_stride.checked_mul(u64::from(self.num_blocks))?)
    }
}

impl KvLayout {
    /// Checks what every later computation relies on.
    ///
    /// # Errors
    /// The first [`LayoutError`] found.
    pub fn checked(self) -> Result<Self, LayoutError> {
        if self.regions.is_empty() {
            return Err(LayoutError::NoRegion);
        }
        if self.kernel_per_logical == 0 {
            return Err(LayoutError::Zero("physical_blocks_per_logical_kv_block"));
        }
        if self.kernel_block_tokens == 0 {
            return Err(LayoutError::Zero("block_size"));
        }
        for (region, layout) in self.regions.iter().enumerate() {
            if layout.block_len == 0 {
                return Err(LayoutError::Zero("block_lens"));
            }
            if layout.block_stride < layout.block_len {
                let (stride, block_len) = (layout.block_stride, layout.block_len);
                return Err(LayoutError::StrideBelowBlock { region, stride, block_len });
            }
            if layout.end().is_none() {
                return Err(LayoutError::Overflow { region });
            }
        }
        Ok(self)
    }

    /// Tokens in one logical block.
    pub fn block_tokens(&self) -> u64 {
        u64::from(self.kernel_block_tokens) * u64::from(self.kernel_per_logical)
    }

    /// Logical blocks that `tokens` tokens fill, the last one perhaps partly.
    pub fn blocks_for(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.block_tokens())
    }

    /// Bytes that one logical block occupies over all regions, gaps of the stride included: what one staging slot costs.
    pub fn slot_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.block_stride * u64::from(self.kernel_per_logical)).sum()
    }

    /// Logical blocks in the cache: what every region has.
    pub fn logical_blocks(&self) -> u32 {
        self.regions.iter().map(|region| region.num_blocks / self.kernel_per_logical).min().unwrap_or(0)
    }

    /// How many KV-cache groups the regions name; at least 1.
    pub fn groups(&self) -> u16 {
        let highest = self.regions.iter().filter_map(|region| match region.group {
            RegionGroup::One(group) => Some(group),
            RegionGroup::Shared => None,
        });
        highest.max().map_or(1, |group| group.saturating_add(1))
    }

    /// Whether a block's bytes mean the same in both caches. Base addresses and pool sizes are free to differ.
    ///
    /// # Errors
    /// The first [`LayoutMismatch`], in words for an operator.
    pub fn compatible_with(&self, other: &Self) -> Result<(), LayoutMismatch> {
        if self.regions.len() != other.regions.len() {
            return Err(LayoutMismatch::RegionCount { ours: self.regions.len(), theirs: other.regions.len() });
        }
        let number = |what, ours: u32, theirs: u32| {
            let (ours, theirs) = (u64::from(ours), u64::from(theirs));
            if ours == theirs { Ok(()) } else { Err(LayoutMismatch::Number { what, ours, theirs }) }
        };
        let word = |what, ours: &str, theirs: &str| {
            let mismatch = || LayoutMismatch::Word { what, ours: ours.to_owned(), theirs: theirs.to_owned() };
            if ours == theirs { Ok(()) } else { Err(mismatch()) }
        };
        number("kernel blocks per logical block", self.kernel_per_logical, other.kernel_per_logical)?;
        number("block size in tokens", self.kernel_block_tokens, other.kernel_block_tokens)?;
        word("KV layout", &self.layout, &other.layout)?;
        word("attention backend", &self.backend, &other.backend)?;
        for (region, (ours, theirs)) in self.regions.iter().zip(&other.regions).enumerate() {
            let differs = |what| Err(LayoutMismatch::Region { region, what });
            if ours.block_len != theirs.block_len {
                return differs("block length");
            }
            if ours.group != theirs.group {
                return differs("KV-cache group");
            }
            if ours.name != theirs.name {
                return differs("name");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

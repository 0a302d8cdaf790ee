//! From blocks to bytes: which ranges of a source cache go to which ranges of a destination, in as few pieces as possible.
//!
//! A run is one descriptor on each side. NIXL pays per descriptor (`docs/nixl-ffi.md` §3.3), so slots are assigned in the
//! order of the source's block ids: neighbours there become neighbours here, and one run.

use crate::blocks::GroupedBlocks;
use crate::ids::{BlockId, SlotId};
use crate::layout::{KvLayout, RegionGroup, RegionLayout};
use crate::slots::SlotSet;

/// Slots for one request: per KV-cache group, in prompt order, as `remote_block_ids` for the decode engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotAssignment(Vec<Vec<SlotId>>);

/// One contiguous piece of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Address in the source's process.
    pub source: u64,
    /// Address in the destination's process.
    pub destination: u64,
    /// Bytes.
    pub len: u64,
}

/// All pieces of one shard's copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyPlan {
    /// Ordered by region, then by source address.
    pub runs: Vec<Run>,
    /// Bytes over all runs.
    pub bytes: u64,
    /// Kernel blocks over all regions: as many runs as there would be if none had been joined.
    pub pieces: u64,
}

/// Why blocks cannot be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The request names another number of groups than the cache has.
    #[error("the request has {got} block groups, the cache has {expected}")]
    GroupCount {
        /// Groups in the request.
        got: usize,
        /// Groups in the cache.
        expected: usize,
    },
    /// A block that the source does not have.
    #[error("block {block} is outside the source's {blocks} blocks")]
    BlockOutOfRange {
        /// The block.
        block: BlockId,
        /// Logical blocks in the source.
        blocks: u32,
    },
    /// A slot that the destination does not have.
    #[error("slot {slot} is outside the arena's {slots} slots")]
    SlotOutOfRange {
        /// The slot.
        slot: SlotId,
        /// Slots in the arena.
        slots: u32,
    },
    /// Another number of slots than blocks.
    #[error("{slots} slots for {blocks} blocks")]
    SlotCount {
        /// Slots given.
        slots: usize,
        /// Blocks to place.
        blocks: usize,
    },
    /// The two caches have different region lists.
    #[error("source and destination differ in their regions")]
    Regions,
}

impl SlotAssignment {
    /// Spreads a slot set over the groups' blocks so that ascending blocks get ascending slots.
    ///
    /// # Errors
    /// [`PlanError::SlotCount`] when the numbers differ.
    pub fn new(blocks: &GroupedBlocks, slots: &SlotSet) -> Result<Self, PlanError> {
        let miscount = || PlanError::SlotCount { slots: slots.ids().len(), blocks: blocks.total() };
        if slots.ids().len() != blocks.total() {
            return Err(miscount());
        }
        let mut free = slots.ids().iter().copied();
        let mut groups = Vec::with_capacity(blocks.groups().len());
        for group in blocks.groups() {
            let mut by_id: Vec<(BlockId, usize)> = group.ids().iter().copied().zip(0..).collect();
            by_id.sort_unstable();
            let mut placed = Vec::with_capacity(by_id.len());
            for (_, position) in by_id {
                placed.push((position, free.next().ok_or_else(miscount)?));
            }
            placed.sort_unstable();
            groups.push(placed.into_iter().map(|(_, slot)| slot).collect());
        }
        Ok(Self(groups))
    }

    /// Per group, the slots in prompt order.
    pub fn groups(&self) -> &[Vec<SlotId>] {
        &self.0
    }
}

impl CopyPlan {
    /// Plans one shard's copy of `blocks` of `source` to `slots` of `destination`, whose layouts must be compatible.
    ///
    /// # Errors
    /// [`PlanError`] for ids that either side does not have, or lists that do not pair up.
    pub fn new(
        source: &KvLayout,
        blocks: &GroupedBlocks,
        destination: &KvLayout,
        slots: &SlotAssignment,
    ) -> Result<Self, PlanError> {
        let expected = usize::from(source.groups());
        if blocks.groups().len() != expected {
            return Err(PlanError::GroupCount { got: blocks.groups().len(), expected });
        }
        if source.regions.len() != destination.regions.len() {
            return Err(PlanError::Regions);
        }
        let pairs = pair_up(source, blocks, destination, slots)?;
        let mut runs: Vec<Run> = Vec::new();
        let mut pieces: u64 = 0;
        for (from, to) in source.regions.iter().zip(&destination.regions) {
            let first = runs.len();
            for (group, pairs) in (0u16..).zip(&pairs) {
                if from.group == RegionGroup::One(group) || from.group == RegionGroup::Shared {
                    for (block, slot) in pairs {
                        push_block(&mut runs, first, from, to, source.kernel_per_logical, *block, *slot);
                        pieces = pieces.saturating_add(source.kernel_per_logical.into());
                    }
                }
            }
        }
        let bytes = runs.iter().map(|run| run.len).sum();
        Ok(Self { runs, bytes, pieces })
    }
}

/// Per group, (block, slot) ascending by block; every id checked.
fn pair_up(
    source: &KvLayout,
    blocks: &GroupedBlocks,
    destination: &KvLayout,
    slots: &SlotAssignment,
) -> Result<Vec<Vec<(BlockId, SlotId)>>, PlanError> {
    let (source_blocks, arena_slots) = (source.logical_blocks(), destination.logical_blocks());
    let mut pairs = Vec::with_capacity(blocks.groups().len());
    for (index, group) in blocks.groups().iter().enumerate() {
        let slots = slots.groups().get(index).map(Vec::as_slice).unwrap_or_default();
        if slots.len() != group.len() {
            return Err(PlanError::SlotCount { slots: slots.len(), blocks: group.len() });
        }
        if let Some(block) = group.ids().iter().find(|block| block.0 >= source_blocks) {
            return Err(PlanError::BlockOutOfRange { block: *block, blocks: source_blocks });
        }
        if let Some(slot) = slots.iter().find(|slot| slot.0 >= arena_slots) {
            return Err(PlanError::SlotOutOfRange { slot: *slot, slots: arena_slots });
        }
        let mut paired: Vec<_> = group.ids().iter().copied().zip(slots.iter().copied()).collect();
        paired.sort_unstable();
        pairs.push(paired);
    }
    Ok(pairs)
}

/// Adds one logical block's kernel blocks, each joined to the run before it if both sides continue there.
fn push_block(
    runs: &mut Vec<Run>,
    first: usize,
    from: &RegionLayout,
    to: &RegionLayout,
    kernel_per_logical: u32,
    block: BlockId,
    slot: SlotId,
) {
    let kernel = |logical: u32, index: u32| u64::from(logical) * u64::from(kernel_per_logical) + u64::from(index);
    for index in 0..kernel_per_logical {
        let source = from.base + kernel(block.0, index) * from.block_stride;
        let destination = to.base + kernel(slot.0, index) * to.block_stride;
        let open = runs.get_mut(first..).and_then(<[Run]>::last_mut);
        match open {
            Some(run) if run.source + run.len == source && run.destination + run.len == destination => {
                run.len += from.block_len;
            }
            Some(_) | None => runs.push(Run { source, destination, len: from.block_len }),
        }
    }
}

/// The layout of a staging arena of `slots` slots at `base` that repeats an engine's geometry, region after region.
pub fn staging_layout(engine: &KvLayout, base: u64, slots: u32) -> KvLayout {
    let mut layout = engine.clone();
    let num_blocks = slots.saturating_mul(engine.kernel_per_logical);
    let mut next = base;
    for region in &mut layout.regions {
        region.base = next;
        region.num_blocks = num_blocks;
        next = next.saturating_add(region.block_stride.saturating_mul(u64::from(num_blocks)));
    }
    layout
}

#[cfg(test)]
mod tests;

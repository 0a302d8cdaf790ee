//! What is digested to compare what has landed with what was sent: which blocks, which bytes of each in which order, and how.
//!
//! A **page** is one logical block in one region. Its digest is over its kernel blocks in order, `block_len` bytes each: what lies between
//! them when the stride is longer is nobody's KV and differs from cache to cache. So a page has the same digest wherever its block lies.
//! Pages come group by group, in each group block by block as listed, in each block region by region in wire order.

mod page;

pub use page::{ALGORITHM, CHUNK, PageDigest};

use crate::blocks::GroupedBlocks;
use crate::copy::SlotAssignment;
use crate::ids::BlockId;
use crate::layout::{KvLayout, RegionGroup, RegionLayout};

/// How much of what lands is compared with the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verify {
    /// Nothing.
    #[default]
    Off,
    /// So many blocks of each transfer, the first and the last among them; at least 2 count.
    Sample(u32),
    /// Every block.
    Full,
}

/// The blocks of one request that are compared: per KV-cache group, positions in the request's list, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen(Vec<Vec<usize>>);

impl Chosen {
    /// Chooses among `blocks` (over all groups together); the same seed makes the same choice. None when nothing is to be compared.
    pub fn new(verify: Verify, blocks: &GroupedBlocks, seed: u64) -> Option<Self> {
        let total = blocks.total();
        let of_all = match verify {
            Verify::Off => return None,
            Verify::Full => (0..total).collect(),
            Verify::Sample(count) => sample(total, usize::try_from(count).unwrap_or(usize::MAX), seed),
        };
        let mut of_all = of_all.into_iter().peekable();
        let mut first = 0;
        let mut groups = Vec::with_capacity(blocks.groups().len());
        for group in blocks.groups() {
            let end = first + group.len();
            let mut positions = Vec::new();
            while let Some(position) = of_all.next_if(|position| *position < end) {
                positions.push(position - first);
            }
            groups.push(positions);
            first = end;
        }
        Some(Self(groups))
    }

    /// How many blocks.
    pub fn count(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// The chosen blocks of the source, per group.
    pub fn blocks(&self, blocks: &GroupedBlocks) -> Vec<Vec<BlockId>> {
        let of_group = |(positions, group): (&Vec<usize>, &crate::blocks::BlockList)| {
            positions.iter().filter_map(|position| group.ids().get(*position).copied()).collect()
        };
        self.0.iter().zip(blocks.groups()).map(of_group).collect()
    }

    /// Where they have landed: the slots, as blocks of the arena.
    pub fn slots(&self, slots: &SlotAssignment) -> Vec<Vec<BlockId>> {
        let of_group = |(positions, group): (&Vec<usize>, &Vec<crate::ids::SlotId>)| {
            positions.iter().filter_map(|position| group.get(*position)).map(|slot| BlockId(slot.0)).collect()
        };
        self.0.iter().zip(slots.groups()).map(of_group).collect()
    }
}

/// `count` different numbers below `total`, ascending; 0 and `total - 1` are always among them.
fn sample(total: usize, count: usize, seed: u64) -> Vec<usize> {
    if count >= total || total <= 2 {
        return (0..total).collect();
    }
    // Floyd's way of choosing without repetition among what lies between the first and the last.
    let (inner, wanted) = (total - 2, count.saturating_sub(2));
    let mut random = seed;
    let mut chosen = std::collections::BTreeSet::new();
    for upper in inner - wanted..inner {
        let pick = below(&mut random, upper + 1);
        if !chosen.insert(pick) {
            chosen.insert(upper);
        }
    }
    std::iter::once(0).chain(chosen.into_iter().map(|inner| inner + 1)).chain(std::iter::once(total - 1)).collect()
}

/// A number below `bound` from the next word of a SplitMix64 stream. The bias is below 2⁻³² for any list of blocks.
fn below(random: &mut u64, bound: usize) -> usize {
    *random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut word = *random;
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^= word >> 31;
    let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
    usize::try_from(word % bound).unwrap_or(0)
}

/// One logical block in one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Page {
    /// Index of the region.
    pub region: usize,
    /// The block, or the slot.
    pub block: BlockId,
}

/// The pages of blocks that are listed per group, in the order in which their digests are told.
pub fn pages(layout: &KvLayout, blocks: &[Vec<BlockId>]) -> Vec<Page> {
    let mut pages = Vec::new();
    for (group, blocks) in (0_u16..).zip(blocks) {
        for block in blocks {
            let of_group = |(_, region): &(usize, &RegionLayout)| {
                region.group == RegionGroup::One(group) || region.group == RegionGroup::Shared
            };
            let regions = layout.regions.iter().enumerate().filter(of_group);
            pages.extend(regions.map(|(region, _)| Page { region, block: *block }));
        }
    }
    pages
}

/// How many pages one block of a group has.
pub fn pages_per_block(layout: &KvLayout, group: u16) -> usize {
    let of_group =
        |region: &&RegionLayout| matches!(region.group, RegionGroup::Shared) || region.group == RegionGroup::One(group);
    layout.regions.iter().filter(of_group).count()
}

/// The bytes of a page, in order: (address in the cache's process, length). Empty for a region that the layout does not have.
pub fn spans(layout: &KvLayout, page: Page) -> impl Iterator<Item = (u64, u64)> {
    let kernel = u64::from(layout.kernel_per_logical);
    let region = layout.regions.get(page.region);
    let (joined, count) = match region {
        // Without gaps it is one piece.
        Some(region) if region.block_len == region.block_stride => (kernel, 1),
        Some(_) => (1, kernel),
        None => (0, 0),
    };
    (0..count).filter_map(move |index| {
        let region = region?;
        let first = u64::from(page.block.0).saturating_mul(kernel).saturating_add(index);
        let address = region.base.saturating_add(first.saturating_mul(region.block_stride));
        Some((address, region.block_len.saturating_mul(joined)))
    })
}

#[cfg(test)]
mod tests;

//! The reads that bring pages into a small memory, piece by piece: two halves of it, so that one is filled while the other is digested.
//!
//! A page that fits into a half is not cut: a GPU digests whole chunks of it. A larger one begins with a half, and a half has whole chunks.

use kv::digest::{Page, spans};
use kv::layout::KvLayout;

/// Bytes of one half.
pub(super) const HALF: u64 = 4 << 20;

/// Part of a page in a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Offset in the memory.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u64,
    /// The page's number, if this is its end.
    pub(super) ends: Option<usize>,
}

/// One read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// `(offset in the memory, length)`.
    pub(super) local: Vec<(u64, u64)>,
    /// `(address in the engine's process, length)`, as many and as long.
    pub(super) remote: Vec<(u64, u64)>,
    /// The pages in it, in the order in which they are digested.
    pub(super) parts: Vec<Part>,
}

/// Reads for all pages of one shard: by region and block, so that neighbours in the cache become one descriptor. `half` is the bytes of a half.
pub(super) fn pieces(layout: &KvLayout, pages: &[Page], half: u64) -> Vec<Piece> {
    let mut order: Vec<(Page, usize)> = pages.iter().copied().zip(0..).collect();
    order.sort_unstable();
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut piece, mut filled) = (Piece::default(), 0);
    for (page, number) in order {
        let whole: u64 = spans(layout, page).map(|(_, len)| len).fold(0, u64::saturating_add);
        if whole > half.saturating_sub(filled) && filled > 0 {
            pieces.push(std::mem::take(&mut piece));
            filled = 0;
        }
        let mut spans = spans(layout, page).peekable();
        while let Some((mut address, mut left)) = spans.next() {
            while left > 0 {
                let len = left.min(half.saturating_sub(filled));
                if len == 0 {
                    pieces.push(std::mem::take(&mut piece));
                    filled = 0;
                    continue;
                }
                let second = u64::try_from(pieces.len() % 2).unwrap_or(0).saturating_mul(half);
                let ends = (len == left && spans.peek().is_none()).then_some(number);
                piece.add(second.saturating_add(filled), address, len, ends);
                (address, left, filled) = (address.saturating_add(len), left - len, filled.saturating_add(len));
            }
        }
    }
    if !piece.parts.is_empty() {
        pieces.push(piece);
    }
    pieces
}

impl Piece {
    fn add(&mut self, offset: u64, address: u64, len: u64, ends: Option<usize>) {
        self.parts.push(Part { offset, len, ends });
        match (self.local.last_mut(), self.remote.last_mut()) {
            // What lies together here always does; at the engine only neighbours do.
            (Some(local), Some(remote)) if remote.0.saturating_add(remote.1) == address => {
                local.1 = local.1.saturating_add(len);
                remote.1 = remote.1.saturating_add(len);
            }
            (Some(_) | None, Some(_) | None) => {
                self.local.push((offset, len));
                self.remote.push((address, len));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv::ids::BlockId;
    use kv::layout::{MemoryKind, RegionGroup, RegionLayout};

    fn layout(stride: u64) -> KvLayout {
        let region = |base| RegionLayout {
            name: String::new(),
            base,
            block_len: 64,
            block_stride: stride,
            num_blocks: 32,
            group: RegionGroup::Shared,
        };
        KvLayout {
            regions: vec![region(0x1_0000), region(0x2_0000)],
            kernel_per_logical: 2,
            kernel_block_tokens: 16,
            layout: "LBHNC".to_owned(),
            backend: "X".to_owned(),
            memory: MemoryKind::Dram,
            device: 0,
        }
    }

    fn of(stride: u64, blocks: &[u32], half: u64) -> Vec<Piece> {
        let layout = layout(stride);
        let blocks = blocks.iter().copied().map(BlockId).collect();
        pieces(&layout, &kv::digest::pages(&layout, &[blocks]), half)
    }

    #[test]
    fn neighbours_are_one_descriptor_and_pages_keep_their_numbers() {
        let pieces = of(64, &[5, 4], 1 << 20);
        assert_eq!(pieces.len(), 1);
        assert_eq!(pieces[0].remote, [(0x1_0000 + 4 * 128, 256), (0x2_0000 + 4 * 128, 256)]);
        assert_eq!(pieces[0].local, [(0, 256), (256, 256)]);
        // Asked for in the order (5, region 0), (5, region 1), (4, region 0), (4, region 1).
        let ends: Vec<_> = pieces[0].parts.iter().map(|part| part.ends).collect();
        assert_eq!(ends, [Some(2), Some(0), Some(3), Some(1)]);
    }

    #[test]
    fn gaps_are_not_read() {
        let pieces = of(96, &[1], 1 << 20);
        assert_eq!(pieces[0].remote.iter().map(|entry| entry.1).collect::<Vec<_>>(), [64; 4]);
        let ends: Vec<_> = pieces[0].parts.iter().map(|part| part.ends).collect();
        assert_eq!(ends, [None, Some(0), None, Some(1)]);
    }

    #[test]
    fn what_does_not_fit_into_a_half_goes_on_in_the_other() {
        for half in [1, 48, 100, 128, 300] {
            let pieces = of(64, &[7, 2, 3], half);
            let mut at = Vec::new();
            for (index, piece) in pieces.iter().enumerate() {
                let base = u64::try_from(index % 2).unwrap() * half;
                assert!(piece.local.iter().all(|(offset, len)| *offset >= base && offset + len <= base + half));
                assert!(piece.local.iter().map(|entry| entry.1).eq(piece.remote.iter().map(|entry| entry.1)));
                at.extend(piece.parts.iter().filter_map(|part| part.ends));
            }
            let is_cut = |piece: &Piece| piece.parts.last().is_some_and(|part| part.ends.is_none());
            assert!(half < 128 || !pieces.iter().any(is_cut), "{half}: a page that fits is whole");
            assert_eq!(
                pieces.iter().flat_map(|piece| &piece.parts).map(|part| part.len).sum::<u64>(),
                6 * 128,
                "{half}"
            );
            at.sort_unstable();
            assert_eq!(at, [0, 1, 2, 3, 4, 5], "each page ends once");
        }
    }
}

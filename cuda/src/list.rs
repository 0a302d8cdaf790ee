//! Lists of work, as a launch takes them: entries of 64-bit words, checked against the memory they lie in, and cut into pieces so that a
//! block of threads finds its own by bisection (`kernels/ranges.cuh`).

use std::ops::Range;

/// Bytes of KV under one chunk's digest.
pub const CHUNK: u64 = 4096;
/// Bytes that one block of threads zeroes or copies.
const PIECE: u64 = 16_384;
/// Threads of every block.
pub(crate) const THREADS: u32 = 128;
/// Chunks that a block digests: four threads each.
const CHUNKS_PER_BLOCK: u64 = 32;
/// Blocks that one launch can have.
const MOST_BLOCKS: u64 = (1 << 31) - 1;

/// Kernel blocks of a page, one every `stride` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where the first one starts in the memory.
    pub offset: u64,
    /// Bytes of each.
    pub block_len: u64,
    /// Bytes from one to the next, at least `block_len`.
    pub stride: u64,
    /// How many.
    pub blocks: u64,
}

/// One copy within a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    /// Where the bytes are, in the memory that is read.
    pub(crate) from: u64,
    /// Where they go, in the memory that is written.
    pub(crate) to: u64,
    /// How many.
    pub(crate) bytes: u64,
}

/// A list that no launch can carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// An entry leaves its memory.
    #[error("entry {index}: {len} bytes at offset {offset} leave memory of {size} bytes")]
    OutOfRange {
        /// Which.
        index: usize,
        /// Where it starts.
        offset: u64,
        /// Bytes from its first to its last.
        len: u64,
        /// Bytes that there are.
        size: u64,
    },
    /// Kernel blocks that lie on one another, or have no bytes.
    #[error("entry {index}: kernel blocks of {block_len} bytes, one every {stride} bytes")]
    Stride {
        /// Which.
        index: usize,
        /// Bytes of each.
        block_len: u64,
        /// Bytes from one to the next.
        stride: u64,
    },
    /// Ranges that are not as long as what is copied.
    #[error("the ranges have {ranges} bytes, the host's side {given}")]
    Total {
        /// Bytes of all ranges.
        ranges: u64,
        /// Bytes on the host.
        given: u64,
    },
    /// More than one launch takes.
    #[error("{pieces} pieces are more than one launch takes")]
    TooLong {
        /// Pieces.
        pieces: u64,
    },
}

/// Where a memory lies: what entries are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Address of its first byte.
    pub base: u64,
    /// Its bytes.
    pub len: u64,
}

impl Extent {
    pub(crate) fn address(self, index: usize, offset: u64, len: u64) -> Result<u64, ListError> {
        let refused = ListError::OutOfRange { index, offset, len, size: self.len };
        let end = offset.checked_add(len).ok_or(refused)?;
        if end > self.len { Err(refused) } else { self.base.checked_add(offset).ok_or(refused) }
    }
}

/// Words for a launch, and how it is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    /// `WORDS` of each entry, in the order of the kernels' structs.
    pub words: Vec<u64>,
    /// Entries.
    pub count: u64,
    /// Pieces of all entries.
    pub pieces: u64,
}

impl List {
    fn push(&mut self, entry: &[u64], pieces: u64) -> Result<(), ListError> {
        self.words.extend_from_slice(entry);
        self.count = self.count.saturating_add(1);
        self.pieces = self.pieces.saturating_add(pieces);
        if self.pieces > MOST_BLOCKS { Err(ListError::TooLong { pieces: self.pieces }) } else { Ok(()) }
    }

    /// Blocks of a launch that digests the chunks of pages.
    pub(crate) fn chunk_blocks(&self) -> u64 {
        self.pieces.div_ceil(CHUNKS_PER_BLOCK)
    }

    /// Blocks of a launch with a thread per entry.
    pub(crate) fn entry_blocks(&self) -> u64 {
        self.count.div_ceil(u64::from(THREADS))
    }
}

/// Pages, to digest them; a piece is a chunk.
///
/// # Errors
/// [`ListError`].
pub(crate) fn pages(memory: Extent, pages: &[Page]) -> Result<List, ListError> {
    let mut list = List::default();
    for (index, page) in pages.iter().enumerate() {
        let &Page { offset, block_len, stride, blocks } = page;
        if block_len == 0 || stride < block_len {
            return Err(ListError::Stride { index, block_len, stride });
        }
        let too_long = ListError::OutOfRange { index, offset, len: u64::MAX, size: memory.len };
        let reach = match blocks.checked_sub(1) {
            Some(gaps) => gaps.checked_mul(stride).and_then(|gaps| gaps.checked_add(block_len)).ok_or(too_long)?,
            None => 0,
        };
        let address = memory.address(index, offset, reach)?;
        // No more than `reach`.
        let bytes = blocks.saturating_mul(block_len);
        list.push(&[address, list.pieces, bytes, block_len, stride], bytes.div_ceil(CHUNK))?;
    }
    Ok(list)
}

/// Ranges, to zero them.
///
/// # Errors
/// [`ListError`].
pub(crate) fn ranges(memory: Extent, ranges: &[Range<u64>]) -> Result<List, ListError> {
    let mut list = List::default();
    for (index, range) in ranges.iter().enumerate() {
        let len = range.end.saturating_sub(range.start);
        let address = memory.address(index, range.start, len)?;
        list.push(&[address, list.pieces, len], len.div_ceil(PIECE))?;
    }
    Ok(list)
}

/// Copies between two memories that have no byte in common.
///
/// # Errors
/// [`ListError`].
pub(crate) fn moves(from: Extent, to: Extent, moves: &[Move]) -> Result<List, ListError> {
    let mut list = List::default();
    for (index, each) in moves.iter().enumerate() {
        let source = from.address(index, each.from, each.bytes)?;
        let target = to.address(index, each.to, each.bytes)?;
        list.push(&[source, target, list.pieces, each.bytes], each.bytes.div_ceil(PIECE))?;
    }
    Ok(list)
}

#[cfg(test)]
mod tests;

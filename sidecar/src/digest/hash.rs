//! Digests of pages that lie in this process's memory, or in a GPU's that is this process's.
//!
//! Heavy: for worker threads only.

use kv::digest::{Page, PageDigest, spans};
use kv::layout::KvLayout;
use nixl::{AccessError, Memory};
use xxhash_rust::xxh64::xxh64;

use super::on_gpu;

/// Bytes that are copied out at a time: what a core's cache holds.
const STEP: usize = 256 << 10;

/// A page's digest that grows piece by piece.
pub(crate) struct Growing {
    state: PageDigest,
    buffer: Vec<u8>,
}

impl Growing {
    /// Over nothing yet.
    pub(crate) fn new() -> Self {
        Self { state: PageDigest::new(), buffer: vec![0; STEP] }
    }

    /// Goes on with `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`AccessError`].
    pub(crate) fn take(&mut self, memory: &Memory, offset: u64, len: u64) -> Result<(), AccessError> {
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(STEP).min(STEP);
            let Some(part) = self.buffer.get_mut(..step) else { break };
            memory.read_at(at, part)?;
            self.state.update(part);
            let step = u64::try_from(step).unwrap_or(left);
            at = at.saturating_add(step);
            left = left.saturating_sub(step);
        }
        Ok(())
    }

    /// The digest of what was taken; the next one begins.
    pub(crate) fn end(&mut self) -> u64 {
        self.state.end()
    }
}

/// Digests of pages of a cache that lies in `memory`, and the bytes that they are over.
///
/// # Errors
/// [`AccessError`] for a page that is not in it, or when a GPU refuses.
pub(crate) fn digest_pages(memory: &Memory, layout: &KvLayout, pages: &[Page]) -> Result<(Vec<u64>, u64), AccessError> {
    if let Some(memory) = memory.on_gpu() {
        return Ok(on_gpu::digest_pages(memory, layout, pages)?);
    }
    let mut growing = Growing::new();
    let mut digests = Vec::with_capacity(pages.len());
    let mut bytes: u64 = 0;
    for page in pages {
        for (address, len) in spans(layout, *page) {
            growing.take(memory, address.saturating_sub(memory.base()), len)?;
            bytes = bytes.saturating_add(len);
        }
        digests.push(growing.end());
    }
    Ok((digests, bytes))
}

/// One digest over all of a transfer's digests: what a receipt shows.
pub(crate) fn over_all(shards: &[Vec<u64>]) -> u64 {
    let bytes: Vec<u8> = shards.iter().flatten().flat_map(|digest| digest.to_le_bytes()).collect();
    xxh64(&bytes, 0)
}

#[cfg(test)]
mod tests;

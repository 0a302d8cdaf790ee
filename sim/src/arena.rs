//! The KV memory of one DP rank: one registered arena per TP shard, filled and digested in chunks.
//!
//! Filling and digesting may be heavy (hundreds of megabytes): both belong into `nixl::bulk`.

use std::sync::Arc;

use cuda::Gpu;
use kv::ids::{BlockId, TpRank};
use nixl::{AccessError, Fabric, HugePages, Memory, Region};

use crate::geometry::Geometry;
use crate::kv_bytes::{self, BlockKey, CHUNK_BYTES, PageKey, PageStream};

/// One block of a prompt: where it lies and what belongs into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The block.
    pub block: BlockId,
    /// Its index in the prompt.
    pub position: u32,
    /// Its contents.
    pub key: BlockKey,
}

/// One TP shard: its agent and its memory.
#[derive(Clone, Debug)]
pub struct Shard {
    /// The agent that owns the registration.
    pub fabric: Arc<dyn Fabric>,
    /// The arena.
    pub region: Region,
}

/// The memory of one DP rank.
#[derive(Debug)]
pub struct Arena {
    geometry: Geometry,
    shards: Vec<Shard>,
}

/// What the KV of a prompt amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Digest of every byte of every block, layer and shard.
    pub value: u64,
    /// Bytes of pages that do not begin as this prompt's KV begins: somebody else's, or nothing's.
    pub foreign_bytes: u64,
}

/// Bytes at a page's start that tell whose it is.
const PROBE_BYTES: usize = 16;

impl Arena {
    /// Memory for one shard: the host's, lazily touched, or a GPU's.
    ///
    /// # Errors
    /// When the system, or the GPU, has no such memory.
    pub fn memory(geometry: &Geometry, gpu: Option<&Gpu>) -> Result<Memory, nixl::MemoryError> {
        match gpu {
            None => Memory::host(geometry.arena_bytes(), HugePages::Try),
            Some(gpu) => Memory::device(geometry.arena_bytes(), gpu),
        }
    }

    /// Puts the shards together, in TP order.
    pub fn new(geometry: Geometry, shards: Vec<Shard>) -> Self {
        Self { geometry, shards }
    }

    /// The sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The shards in TP order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The shards with their ranks.
    pub fn ranked(&self) -> impl Iterator<Item = (TpRank, &Shard)> {
        (0..).map(TpRank).zip(&self.shards)
    }

    /// What work over so many blocks counts as for `nixl::bulk`: their bytes, all layers and shards together; much, where a GPU is waited for.
    pub fn work(&self, blocks: usize) -> u64 {
        if self.shards.iter().any(|shard| shard.region.memory().on_gpu().is_some()) {
            return u64::MAX;
        }
        let shards = u64::from(self.geometry.tensor_parallel);
        let block = self.geometry.page_bytes().saturating_mul(u64::from(self.geometry.layers)).saturating_mul(shards);
        block.saturating_mul(u64::try_from(blocks).unwrap_or(u64::MAX))
    }

    /// Writes the KV of `pages`: what a prefill computes.
    ///
    /// # Errors
    /// When a block lies outside the arena.
    pub fn fill(&self, pages: &[Page]) -> Result<(), AccessError> {
        let mut buffer = self.buffer();
        for (shard, memory) in self.ranked() {
            for layer in 0..self.geometry.layers {
                for page in pages {
                    let stream = self.stream(page, layer, shard);
                    self.each_chunk(layer, page.block, &mut buffer, |first_word, offset, chunk| {
                        stream.write(first_word, chunk);
                        memory.region.write_at(offset, chunk)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Reads every byte of `pages`, in prompt order: what the text is a function of.
    ///
    /// # Errors
    /// When a block lies outside the arena.
    pub fn digest(&self, pages: &[Page]) -> Result<Digest, AccessError> {
        let mut buffer = self.buffer();
        let mut digest = Digest { value: 0, foreign_bytes: 0 };
        for page in pages {
            for (shard, memory) in self.ranked() {
                for layer in 0..self.geometry.layers {
                    let stream = self.stream(page, layer, shard);
                    self.each_chunk(layer, page.block, &mut buffer, |first_word, offset, chunk| {
                        memory.region.read_at(offset, chunk)?;
                        digest.value = kv_bytes::digest(digest.value, chunk);
                        if first_word == 0 && !begins_as(stream, chunk) {
                            digest.foreign_bytes += self.geometry.page_bytes();
                        }
                        Ok(())
                    })?;
                }
            }
        }
        Ok(digest)
    }

    /// Overwrites blocks with one byte: for tests and for showing that bytes matter.
    ///
    /// # Errors
    /// When a block lies outside the arena.
    pub fn overwrite(&self, blocks: &[BlockId], byte: u8) -> Result<(), AccessError> {
        for shard in &self.shards {
            for layer in 0..self.geometry.layers {
                for block in blocks {
                    let start = self.geometry.offset(layer, *block);
                    shard.region.fill(start..start + self.geometry.page_bytes(), byte)?;
                }
            }
        }
        Ok(())
    }

    fn stream(&self, page: &Page, layer: u32, shard: TpRank) -> PageStream {
        PageStream::new(PageKey { block: page.key, position: page.position, layer, shard: shard.0 })
    }

    fn buffer(&self) -> Vec<u8> {
        let page = usize::try_from(self.geometry.page_bytes()).unwrap_or(usize::MAX);
        vec![0; page.min(CHUNK_BYTES)]
    }

    /// Calls `work` with (first word, offset in the arena, chunk) for each chunk of one page.
    fn each_chunk(
        &self,
        layer: u32,
        block: BlockId,
        buffer: &mut [u8],
        mut work: impl FnMut(u64, u64, &mut [u8]) -> Result<(), AccessError>,
    ) -> Result<(), AccessError> {
        let (start, bytes) = (self.geometry.offset(layer, block), self.geometry.page_bytes());
        let mut done = 0u64;
        while done < bytes {
            let len = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(buffer.len());
            let Some(chunk) = buffer.get_mut(..len) else { break };
            work(done / 8, start + done, chunk)?;
            done += u64::try_from(len).unwrap_or(u64::MAX);
        }
        Ok(())
    }
}

fn begins_as(stream: PageStream, chunk: &[u8]) -> bool {
    let mut expected = [0u8; PROBE_BYTES];
    stream.write(0, &mut expected);
    expected.iter().zip(chunk).all(|(expected, found)| expected == found)
}

#[cfg(test)]
mod tests;

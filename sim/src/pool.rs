//! The blocks of one rank: who has them, which of them hold a known prefix, and in which order they are reused.
//!
//! As in vLLM: block 0 is never handed out; a free block goes to the back of a FIFO queue, a request's last block first,
//! and keeps its contents (and its place in the prefix cache) until it comes up at the front. So a reader that comes after
//! its lease may still find the old bytes, or somebody else's.

use std::collections::BTreeMap;

use kv::ids::BlockId;

use crate::kv_bytes::BlockKey;

/// The block pool. Invariant: a block is either held (count > 0) or in the free queue, never both, never neither,
/// unless it is quarantined.
#[derive(Debug)]
pub struct BlockPool {
    blocks: BTreeMap<BlockId, Block>,
    /// Free blocks by the order in which they became free.
    free: BTreeMap<u64, BlockId>,
    next_ticket: u64,
    cached: BTreeMap<BlockKey, BlockId>,
    prefix_caching: bool,
}

#[derive(Debug, Default)]
struct Block {
    holders: u32,
    ticket: Option<u64>,
    key: Option<BlockKey>,
}

/// What a request got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Its blocks in prompt order; blocks for generated tokens follow.
    pub blocks: Vec<BlockId>,
    /// How many of the first blocks already hold the right KV.
    pub cached: usize,
}

impl BlockPool {
    /// A pool of `num_blocks` blocks, all free but block 0.
    pub fn new(num_blocks: u32, prefix_caching: bool) -> Self {
        let mut pool = Self {
            blocks: BTreeMap::new(),
            free: BTreeMap::new(),
            next_ticket: 0,
            cached: BTreeMap::new(),
            prefix_caching,
        };
        for id in (1..num_blocks).map(BlockId) {
            pool.blocks.insert(id, Block::default());
            pool.enqueue(id);
        }
        pool
    }

    /// Blocks that a request may get.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Blocks that requests or pins hold, quarantined ones included.
    pub fn used_blocks(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    /// Blocks in all, without block 0.
    pub fn total_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Takes `total` blocks for a prompt whose *full* blocks that may come from the prefix cache have `keys`
    /// (the caller leaves out the block of the last token, which is always computed anew). `None` when too few are free;
    /// nothing is taken then.
    pub fn allocate(&mut self, keys: &[BlockKey], total: usize) -> Option<Allocation> {
        let hits = self.hits(keys, total);
        let idle_hits = hits.iter().filter(|id| self.is_free(**id)).count();
        if self.free.len() < total - hits.len() + idle_hits {
            return None;
        }
        let cached = hits.len();
        let mut blocks = hits;
        for id in &blocks {
            self.hold(*id);
        }
        while blocks.len() < total {
            let (_, id) = self.free.first_key_value().map(|(ticket, id)| (*ticket, *id))?;
            self.hold(id);
            self.forget_contents(id);
            blocks.push(id);
        }
        Some(Allocation { blocks, cached })
    }

    /// Says that full blocks now hold the KV of `keys`; later prompts may share them.
    pub fn remember(&mut self, blocks: &[BlockId], keys: &[BlockKey]) {
        if !self.prefix_caching {
            return;
        }
        for (id, key) in blocks.iter().zip(keys) {
            if self.cached.contains_key(key) {
                continue;
            }
            if let Some(block) = self.blocks.get_mut(id) {
                block.key = Some(*key);
                self.cached.insert(*key, *id);
            }
        }
    }

    /// Gives a request's blocks back; those that nobody else holds go to the back of the queue, the last one first.
    pub fn release(&mut self, blocks: &[BlockId]) {
        for id in blocks.iter().rev() {
            let Some(block) = self.blocks.get_mut(id) else { continue };
            block.holders = block.holders.saturating_sub(1);
            if block.holders == 0 && block.ticket.is_none() {
                self.enqueue(*id);
            }
        }
    }

    fn hits(&self, keys: &[BlockKey], total: usize) -> Vec<BlockId> {
        if !self.prefix_caching {
            return Vec::new();
        }
        keys.iter().take(total).map_while(|key| self.cached.get(key).copied()).collect()
    }

    fn is_free(&self, id: BlockId) -> bool {
        self.blocks.get(&id).is_some_and(|block| block.ticket.is_some())
    }

    fn hold(&mut self, id: BlockId) {
        if let Some(block) = self.blocks.get_mut(&id) {
            block.holders += 1;
            if let Some(ticket) = block.ticket.take() {
                self.free.remove(&ticket);
            }
        }
    }

    fn forget_contents(&mut self, id: BlockId) {
        if let Some(key) = self.blocks.get_mut(&id).and_then(|block| block.key.take()) {
            self.cached.remove(&key);
        }
    }

    fn enqueue(&mut self, id: BlockId) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if let Some(block) = self.blocks.get_mut(&id) {
            block.ticket = Some(ticket);
            self.free.insert(ticket, id);
        }
    }
}

#[cfg(test)]
mod tests;

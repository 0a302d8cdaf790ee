//! The slots of one staging arena: who has them, who waits for them, which must not be touched.
//!
//! A granted [`SlotSet`] is a linear value: it is given back by exactly one of [`Slots::release`] and
//! [`Slots::quarantine`], both of which consume it (invariant M). Waiters are served strictly in order, so a large
//! request is not starved by small ones.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crate::ids::SlotId;

/// Slots held by one transfer, ascending. Not `Clone`: whoever has it, has the memory.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "slots that are dropped are lost to the arena"]
pub struct SlotSet(Vec<SlotId>);

/// The answer to [`Slots::ask`].
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    /// The slots, at once.
    Granted(SlotSet),
    /// In the queue; [`Slots::grant_next`] or [`Slots::expire_next`] will name the key.
    Queued,
    /// More than the arena can ever give.
    Exceeds {
        /// Slots in the whole arena.
        capacity: u32,
    },
}

/// How the arena's slots are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All slots.
    pub capacity: u32,
    /// Free to grant.
    pub free: u32,
    /// Held by a transfer or waiting for collection.
    pub held: u32,
    /// Not to be used until the agent that may still write them is gone.
    pub quarantined: u32,
    /// Requests in the queue.
    pub waiting: u32,
}

#[derive(Debug)]
struct Waiter<K> {
    key: K,
    need: u32,
    until: Instant,
}

/// The allocator. `K` names a waiter.
#[derive(Debug)]
pub struct Slots<K> {
    capacity: u32,
    /// Free runs: first slot → length. Never adjacent to each other.
    free: BTreeMap<u32, u32>,
    free_count: u32,
    quarantined: Vec<SlotId>,
    waiting: VecDeque<Waiter<K>>,
}

impl SlotSet {
    /// The slots, ascending.
    pub fn ids(&self) -> &[SlotId] {
        &self.0
    }

    /// How many.
    pub fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }
}

impl<K: PartialEq> Slots<K> {
    /// An arena of `capacity` free slots.
    pub fn new(capacity: u32) -> Self {
        let free = if capacity == 0 { BTreeMap::new() } else { BTreeMap::from([(0, capacity)]) };
        Self { capacity, free, free_count: capacity, quarantined: Vec::new(), waiting: VecDeque::new() }
    }

    /// Asks for `need` slots; when they are not there, waits in order until `until`.
    pub fn ask(&mut self, key: K, need: u32, until: Instant) -> Ask {
        if need > self.capacity {
            return Ask::Exceeds { capacity: self.capacity };
        }
        if self.waiting.is_empty()
            && let Some(set) = self.take(need)
        {
            return Ask::Granted(set);
        }
        self.waiting.push_back(Waiter { key, need, until });
        Ask::Queued
    }

    /// Takes a waiter out of the queue; false when it is not there (any more).
    pub fn withdraw(&mut self, key: &K) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiter| waiter.key != *key);
        self.waiting.len() != before
    }

    /// Serves the head of the queue if its slots are there. Call until `None` after every release.
    pub fn grant_next(&mut self) -> Option<(K, SlotSet)> {
        let need = self.waiting.front()?.need;
        let set = self.take(need)?;
        let Some(waiter) = self.waiting.pop_front() else {
            self.release(set);
            return None;
        };
        Some((waiter.key, set))
    }

    /// Removes one waiter whose time is over. Call until `None`.
    pub fn expire_next(&mut self, now: Instant) -> Option<K> {
        let position = self.waiting.iter().position(|waiter| waiter.until <= now)?;
        self.waiting.remove(position).map(|waiter| waiter.key)
    }

    /// When [`Slots::expire_next`] will next have something.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiter| waiter.until).min()
    }

    /// Gives slots back for use by others. Only when no hardware can write them any more.
    pub fn release(&mut self, set: SlotSet) {
        for slot in set.0 {
            self.put(slot.0);
        }
    }

    /// Puts slots aside that hardware may still write.
    pub fn quarantine(&mut self, set: SlotSet) {
        self.quarantined.extend(set.0);
    }

    /// Frees everything in quarantine: the agent that could write there has been destroyed. Returns how many.
    pub fn end_quarantine(&mut self) -> u32 {
        let slots = std::mem::take(&mut self.quarantined);
        let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        for slot in slots {
            self.put(slot.0);
        }
        count
    }

    /// The figures for an operator.
    pub fn usage(&self) -> Usage {
        let quarantined = u32::try_from(self.quarantined.len()).unwrap_or(u32::MAX);
        Usage {
            capacity: self.capacity,
            free: self.free_count,
            held: self.capacity.saturating_sub(self.free_count).saturating_sub(quarantined),
            quarantined,
            waiting: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
        }
    }

    /// The smallest run that is long enough, else the longest runs: contiguous slots merge into few descriptors.
    fn take(&mut self, need: u32) -> Option<SlotSet> {
        if need > self.free_count {
            return None;
        }
        let mut set = Vec::with_capacity(usize::try_from(need).ok()?);
        let mut left = need;
        while left > 0 {
            let fitting = self.free.iter().filter(|(_, length)| **length >= left).min_by_key(|(_, length)| **length);
            let longest = || self.free.iter().max_by_key(|(_, length)| **length);
            let (start, length) = fitting.or_else(longest).map(|(start, length)| (*start, *length))?;
            let taken = length.min(left);
            self.free.remove(&start);
            if taken < length {
                self.free.insert(start + taken, length - taken);
            }
            set.extend((start..start + taken).map(SlotId));
            self.free_count -= taken;
            left -= taken;
        }
        set.sort_unstable();
        Some(SlotSet(set))
    }

    fn put(&mut self, slot: u32) {
        let (mut start, mut length) = (slot, 1);
        if let Some((before, before_length)) = self.free.range(..slot).next_back().map(|(s, l)| (*s, *l))
            && before + before_length == slot
        {
            self.free.remove(&before);
            (start, length) = (before, before_length + 1);
        }
        if let Some(after_length) = self.free.remove(&(slot + 1)) {
            length += after_length;
        }
        self.free.insert(start, length);
        self.free_count += 1;
    }
}

#[cfg(test)]
mod tests;

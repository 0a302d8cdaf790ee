//! Memory registered with one agent.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::memory::{AccessError, Memory};

/// A range that leaves its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset} leave memory of {size} bytes")]
pub struct OutOfRange {
    /// Where the range starts.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// Bytes that there are.
    pub size: u64,
}

/// Which agent of this process a region belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner(u64);

impl Owner {
    /// A number that no other agent of this process has.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What ends a registration when it is dropped; each fabric brings its own.
pub(crate) trait Registration: Send + Sync + 'static {
    /// The same memory as the agents behind a fabric of several know it: the first one's region, and the second one's once there is one.
    fn parts(&self) -> Option<(&Region, Option<&Region>)> {
        None
    }
}

/// Memory registered with one agent. Cloning shares it; it is deregistered when the last clone, and the last descriptor list
/// made from it, is gone, and only then may its memory go.
#[derive(Clone)]
pub struct Region(Arc<Inner>);

struct Inner {
    owner: Owner,
    memory: Memory,
    registration: Box<dyn Registration>,
}

impl Region {
    pub(crate) fn new(owner: Owner, memory: Memory, registration: impl Registration) -> Self {
        Self(Arc::new(Inner { owner, memory, registration: Box::new(registration) }))
    }

    pub(crate) fn owner(&self) -> Owner {
        self.0.owner
    }

    pub(crate) fn parts(&self) -> Option<(&Self, Option<&Self>)> {
        self.0.registration.parts()
    }

    /// The memory, to register it with a second agent.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.memory.len()
    }

    /// Never: memory of no bytes cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Address of byte 0: what peers are told.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.0.memory.base()
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// When the range leaves the region, or a GPU refuses.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), AccessError> {
        self.0.memory.read_at(offset, out)
    }

    /// Copies bytes in, from `offset` on.
    ///
    /// # Errors
    /// When the range leaves the region, or a GPU refuses.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), AccessError> {
        self.0.memory.write_at(offset, bytes)
    }

    /// Sets every byte of `range` to `byte`.
    ///
    /// # Errors
    /// When the range leaves the region, or a GPU refuses.
    pub fn fill(&self, range: Range<u64>, byte: u8) -> Result<(), AccessError> {
        self.0.memory.fill(range, byte)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("owner", &self.0.owner).field("memory", &self.0.memory).finish()
    }
}

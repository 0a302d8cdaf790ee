//! What can go wrong on a fabric, and whether memory is quiet after it.

pub use nixl_sys::{NixlError, StatusKind};

use crate::{memory::MemoryError, name::AgentName, region::OutOfRange};

/// Why a descriptor list, or a pair of them, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescError {
    /// A list without entries moves nothing.
    #[error("a descriptor list must not be empty")]
    Empty,
    /// An entry of no bytes.
    #[error("descriptor {index} has length 0")]
    ZeroLength {
        /// Position in the list.
        index: usize,
    },
    /// A local entry leaves its region.
    #[error("descriptor {index} leaves the region")]
    Local {
        /// Position in the list.
        index: usize,
        /// By how much.
        #[source]
        source: OutOfRange,
    },
    /// A remote entry is not inside one range that the peer advertised.
    #[error("descriptor {index} ({addr:#x}, {len} bytes) is not inside memory that the peer advertised")]
    Remote {
        /// Position in the list.
        index: usize,
        /// Its address at the peer.
        addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The two sides have different numbers of entries.
    #[error("{local} local and {remote} remote descriptors do not pair up")]
    Count {
        /// Local entries.
        local: usize,
        /// Remote entries.
        remote: usize,
    },
    /// The two sides differ in the length of an entry.
    #[error("descriptor {index} is {local} bytes here and {remote} bytes at the peer")]
    Length {
        /// Position in the list.
        index: usize,
        /// Bytes here.
        local: u64,
        /// Bytes at the peer.
        remote: u64,
    },
    /// The local side lies in a region of another agent.
    #[error("the local region is registered with another agent")]
    ForeignRegion,
    /// An index into a prepared list is out of range.
    #[error("index {index} is outside a prepared list of {len}")]
    Index {
        /// The index.
        index: usize,
        /// Entries of the list.
        len: usize,
    },
}

/// Why a fabric did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FabricError {
    /// The agent's queue is full: try again later.
    #[error("the agent's queue is full")]
    Busy,
    /// The agent is closed or closing: the command was not taken.
    #[error("the agent is closed")]
    Closed,
    /// The command was taken, but the agent ended, or its thread died, before it answered.
    #[error("the agent ended before it answered")]
    Lost,
    /// The agent was closed while this transfer was in flight.
    #[error("the agent was closed while the transfer was in flight")]
    Abandoned,
    /// No metadata of this peer is loaded.
    #[error("no metadata of agent {0} is loaded")]
    UnknownPeer(AgentName),
    /// Metadata that cannot be a peer's.
    #[error("the metadata blob is malformed")]
    Metadata,
    /// The descriptor lists are refused.
    #[error("the descriptor lists are refused")]
    Descs(#[from] DescError),
    /// Memory could not be had.
    #[error("memory could not be had")]
    Memory(#[from] MemoryError),
    /// NIXL refused before anything was posted.
    #[error("NIXL refused the command")]
    Nixl(#[from] NixlError),
    /// NIXL refused the post, or the transfer ended badly after it.
    #[error("the transfer failed")]
    Transfer(#[source] NixlError),
}

impl FabricError {
    /// False when hardware may still write into the local side of the failed read: that memory belongs in quarantine until
    /// the agent has been closed.
    #[must_use]
    pub fn memory_is_quiet(&self) -> bool {
        match self {
            Self::Lost | Self::Abandoned | Self::Transfer(_) => false,
            Self::Busy
            | Self::Closed
            | Self::UnknownPeer(_)
            | Self::Metadata
            | Self::Descs(_)
            | Self::Memory(_)
            | Self::Nixl(_) => true,
        }
    }
}

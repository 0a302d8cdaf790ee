//! Source digests: of blocks as P's engine holds them, to be compared with what has landed (`docs/verification.md`).
//!
//! | module | is |
//! |---|---|
//! | `hash`, `on_gpu` | digests of pages of memory; by the GPU that has them |
//! | `pieces` | the reads that bring pages into a small memory |
//! | `reader` | P's side: reads blocks of its own engine over NIXL |
//! | [`source`] | D's side: whoever answers for P's blocks |
//!
//! What a page is, and in which order pages come, is [`kv::digest`]'s business.

pub(crate) mod hash;
mod on_gpu;
mod pieces;
pub(crate) mod reader;
pub mod source;

use std::sync::Arc;

use kv::digest::pages_per_block;
use kv::ids::{BlockId, EngineId, EngineRequestId};
use kv::layout::KvLayout;
use nixl::{DescError, FabricError};
use telemetry::trace::Context;
use tokio::time::Instant;

use crate::model::{Code, TransferError};

/// The most digests (pages over all TP shards) that one question may ask for.
pub const MOST_DIGESTS: usize = 131_072;

/// What is asked of a prefill pod's sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestAsk {
    /// Whose blocks.
    pub engine: EngineId,
    /// P's request; a label only.
    pub request: EngineRequestId,
    /// The blocks, per KV-cache group.
    pub blocks: Vec<Vec<BlockId>>,
    /// When nobody waits for the answer any more.
    pub deadline: Instant,
    /// The span that asks.
    pub trace: Option<Context>,
}

impl DigestAsk {
    /// Blocks over all groups.
    pub fn count(&self) -> usize {
        self.blocks.iter().map(Vec::len).sum()
    }
}

/// Digests of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Per TP shard, one digest per page, in the order of [`kv::digest::pages`].
    pub shards: Vec<Vec<u64>>,
    /// The bytes that they are over.
    pub bytes: u64,
}

/// Digests that the blocks have over all shards.
pub(crate) fn digests_of(blocks: &[Vec<BlockId>], shards: &[Arc<KvLayout>]) -> usize {
    let of_group = |(group, blocks): (u16, &Vec<BlockId>)| {
        let pages: usize = shards.iter().map(|layout| pages_per_block(layout, group)).sum();
        pages.saturating_mul(blocks.len())
    };
    (0..).zip(blocks).map(of_group).fold(0, usize::saturating_add)
}

/// Why a prefill pod's sidecar gives no digests.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DigestError {
    /// The pod has the other role.
    #[error("this pod's role is decode: digests are taken of a prefill engine's blocks")]
    WrongRole,
    /// None of the pod's engines.
    #[error("no rank of this pod runs engine {0}")]
    UnknownEngine(EngineId),
    /// The rank takes no work.
    #[error(transparent)]
    Refused(#[from] TransferError),
    /// Another number of KV-cache groups.
    #[error("blocks are listed for {listed} groups, the engine has {needed}")]
    Groups {
        /// As listed.
        listed: usize,
        /// As the engine has.
        needed: usize,
    },
    /// A block that the engine's cache does not have.
    #[error("block {block} is out of range: the engine's cache has {pool} blocks")]
    BlockOutOfRange {
        /// The block.
        block: BlockId,
        /// Logical blocks of the cache.
        pool: u32,
    },
    /// Nothing to digest.
    #[error("no block is listed")]
    Empty,
    /// More than one question may ask for.
    #[error("{asked} digests are asked for, at most {MOST_DIGESTS} may be at a time")]
    TooMany {
        /// Pages over all shards.
        asked: usize,
    },
    /// Too many wait already.
    #[error("too many digests are being waited for on this rank")]
    Busy,
    /// Not done in time.
    #[error("the digests were not taken at the deadline")]
    Late,
    /// The engine or the process goes.
    #[error("the sidecar, or its engine, is shutting down")]
    Ending,
    /// No agent to read with.
    #[error("start the agent that reads the engine's blocks")]
    NotBuilt(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// An earlier agent could not be destroyed.
    #[error("the agent that read the engine's blocks is stuck: restart the sidecar")]
    Stuck,
    /// The blocks do not lie in what the engine advertised.
    #[error("describe the read of the engine's blocks")]
    Descs(#[source] DescError),
    /// NIXL could not read.
    #[error("read the engine's blocks")]
    Read(#[source] FabricError),
    /// A bug, or the thread that computes is gone.
    #[error("digest what was read")]
    Compute,
}

impl DigestError {
    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::WrongRole | Self::Groups { .. } | Self::BlockOutOfRange { .. } | Self::Empty => Code::ParamsInvalid,
            Self::UnknownEngine(_) => Code::PeerChanged,
            Self::Refused(error) => error.code(),
            Self::TooMany { .. } => Code::TooLarge,
            Self::Busy => Code::StagingFull,
            Self::Late => Code::Deadline,
            Self::Ending => Code::ShuttingDown,
            Self::NotBuilt(_) | Self::Stuck | Self::Descs(_) | Self::Read(_) | Self::Compute => Code::TransferFailed,
        }
    }
}

//! The decode side's pull: which of the remote blocks go into which of ours, and the READs that move them.
//!
//! Source: `docs/vllm-nixl-protocol.md` §2.2, §3.1, §7.2. The rule is vLLM's: the *last* `len(local)` entries of the remote
//! list belong to our blocks, whatever they are. The done notification rides on each shard's READ.

use std::time::Duration;

use kv::ids::{BlockId, EngineRequestId};
use nixl::{DescError, FabricError, LocalDescs, Read, ReadDone, RemoteDescs};

use crate::arena::{Arena, Shard};
use crate::peers::{Peer, PeerError, PeerShard, done_message};

/// A READ that takes longer is given up, and its blocks are not used again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);

/// Why a request's KV is not here.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The handshake failed.
    #[error("shake hands with the prefill engine")]
    Peer(#[from] PeerError),
    /// The remote list is too short (vLLM's engine dies of this).
    #[error("the prefill engine lists {remote} blocks, {local} are missing here")]
    TooFewBlocks {
        /// Blocks to fill.
        local: usize,
        /// Blocks on offer.
        remote: usize,
    },
    /// Another number of KV-cache groups than the one that we have (vLLM's engine dies of this).
    #[error("the prefill engine lists {0} block groups, this engine has 1")]
    Groups(usize),
    /// A block that the peer does not have, or does not let us read.
    #[error("name the prefill engine's blocks")]
    Descs(#[from] DescError),
    /// NIXL.
    #[error("read from the prefill engine")]
    Fabric(#[from] FabricError),
    /// No end within the time that we give it.
    #[error("read from the prefill engine: no end within {0:?}")]
    Deadline(Duration),
    /// The task that loaded is gone.
    #[error("the load was lost")]
    Lost,
}

impl LoadError {
    /// False when hardware may still write into the local blocks.
    pub fn memory_is_quiet(&self) -> bool {
        match self {
            Self::Fabric(error) => error.memory_is_quiet(),
            Self::Deadline(_) | Self::Lost => false,
            Self::Peer(_) | Self::TooFewBlocks { .. } | Self::Groups(_) | Self::Descs(_) => true,
        }
    }
}

/// Reads the blocks of one request, every shard at the same time, and tells the peer with each.
///
/// # Errors
/// The first [`LoadError`], after every READ that was posted has ended; one whose memory is not quiet goes before others.
pub async fn pull(
    arena: &Arena,
    peer: &Peer,
    local: &[BlockId],
    remote: &[BlockId],
    request: &EngineRequestId,
) -> Result<Vec<ReadDone>, LoadError> {
    let skip = remote.len().checked_sub(local.len());
    let too_few = LoadError::TooFewBlocks { local: local.len(), remote: remote.len() };
    let remote = skip.and_then(|skip| remote.get(skip..)).ok_or(too_few)?;
    let mut reads = Vec::with_capacity(peer.shards.len());
    for (shard, theirs) in arena.shards().iter().zip(&peer.shards) {
        reads.push((shard, descs(arena, shard, theirs, local, remote, request)?));
    }
    let reading: Vec<_> = reads.into_iter().map(|(shard, read)| shard.fabric.read(read)).collect();
    let deadline = tokio::time::Instant::now() + GIVE_UP_AFTER;
    let mut done = Vec::with_capacity(reading.len());
    let mut failed: Option<LoadError> = None;
    for reading in reading {
        let result = match tokio::time::timeout_at(deadline, reading.done).await {
            Ok(result) => result.map_err(LoadError::from),
            Err(_) => Err(LoadError::Deadline(GIVE_UP_AFTER)),
        };
        match result {
            Ok(read) => done.push(read),
            Err(error) if failed.as_ref().is_none_or(LoadError::memory_is_quiet) => failed = Some(error),
            Err(_) => {}
        }
    }
    failed.map_or(Ok(done), Err)
}

fn descs(
    arena: &Arena,
    shard: &Shard,
    theirs: &PeerShard,
    local: &[BlockId],
    remote: &[BlockId],
    request: &EngineRequestId,
) -> Result<Read, LoadError> {
    let geometry = arena.geometry();
    let ours = (0..geometry.layers)
        .flat_map(|layer| local.iter().map(move |block| (geometry.offset(layer, *block), geometry.page_bytes())));
    let local_descs = LocalDescs::new(&shard.region, ours)?;
    let remote_descs = theirs.layout.regions.iter().flat_map(|region| {
        // An id past the end of a region would silently name a block of the next one, as it does in vLLM; an address that
        // overflows becomes one that no peer has advertised.
        let place = |block: &BlockId| region.block_stride.checked_mul(u64::from(block.0));
        let at = move |block: &BlockId| place(block).and_then(|offset| region.base.checked_add(offset));
        remote.iter().map(move |block| (at(block).unwrap_or(u64::MAX - region.block_len), region.block_len))
    });
    let remote_descs = RemoteDescs::new(&theirs.memory, remote_descs)?;
    let notify = Some(done_message(request));
    Ok(Read { peer: theirs.agent.clone(), local: local_descs, remote: remote_descs, notify })
}

//! Everything that can end badly, with what the caller may do about it.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use kv::ids::{AttemptId, BlockId, DpRank, EngineId, EngineRequestId, TransferId};
use kv::layout::LayoutMismatch;
use nixl::FabricError;
use side_channel::{AskError, Endpoint, ServeError};
use vllm_wire::handshake::{HandshakeError, UnsupportedLayout};

use super::Code;
use crate::digest::source::SourceError;
use crate::gpus::GpuError;
use crate::peer_allow::NotAllowed;

/// What is wrong with P's parameters, beyond their form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsProblem {
    /// The pod has the other role.
    #[error("this pod's role is prefill: it pulls nothing")]
    WrongRole,
    /// They do not ask for a pull.
    #[error("do_remote_prefill is not true, or do_remote_decode is")]
    NotForDecode,
    /// Another transfer mode.
    #[error("transfer_mode is {0:?}, only \"pull\" works")]
    TransferMode(String),
    /// P and D have different TP.
    #[error("tp_size is {theirs}, this pod's is {ours}: unequal TP is not supported")]
    TpSize {
        /// P's.
        theirs: u16,
        /// D's.
        ours: u16,
    },
    /// Context or pipeline parallelism.
    #[error("{field} is {value}, only 1 is supported")]
    Parallelism {
        /// Which size.
        field: &'static str,
        /// Its value.
        value: u16,
    },
    /// Another number of KV-cache groups.
    #[error("remote_block_ids has {listed} groups, the engine has {needed}")]
    Groups {
        /// As listed.
        listed: usize,
        /// As D's layout says.
        needed: usize,
    },
    /// A list that does not cover exactly the prompt.
    #[error("block group {group} lists {listed} blocks, {tokens} tokens need {needed}")]
    BlockCount {
        /// Index of the group.
        group: usize,
        /// As listed.
        listed: u64,
        /// As the tokens need.
        needed: u64,
        /// `remote_num_tokens`.
        tokens: u64,
    },
    /// A block that P's cache does not have.
    #[error("block {block} is out of range: the peer's cache has {pool} blocks")]
    BlockOutOfRange {
        /// The block.
        block: BlockId,
        /// Logical blocks of P's cache.
        pool: u32,
    },
    /// Nobody can be asked what P holds.
    #[error("what lands is to be compared with the source (--verify), but source_sidecar, whom to ask, is not given")]
    NoSourceSidecar,
    /// The source is the virtual engine of this very pod.
    #[error("remote_engine_id is this pod's own virtual engine")]
    OwnEngine,
    /// The handle belongs to another engine than the rank's (prefill role).
    #[error("remote_engine_id is {theirs}, this rank's engine is {ours}")]
    ForeignEngine {
        /// As reported.
        theirs: EngineId,
        /// As the side channel says.
        ours: EngineId,
    },
}

/// Why a peer's handshake is not good enough to read from it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandshakeRefusal {
    /// Another model, dtype, version, …
    #[error("its compatibility hash is {theirs}, ours is {ours}: model, dtype, vLLM version or backend differ")]
    Hash {
        /// P's.
        theirs: String,
        /// D's.
        ours: String,
    },
    /// Another geometry.
    #[error("TP shard {shard}: {mismatch}")]
    Layout {
        /// TP shard.
        shard: u16,
        /// What differs.
        mismatch: LayoutMismatch,
    },
    /// A cache of a kind that we cannot copy.
    #[error("TP shard {shard}: {unsupported}")]
    Unsupported {
        /// TP shard.
        shard: u16,
        /// What it has.
        unsupported: UnsupportedLayout,
    },
    /// A reply that cannot be used.
    #[error("TP shard {shard} answered something that cannot be used")]
    Reply {
        /// TP shard.
        shard: u16,
        /// Why.
        #[source]
        source: Arc<HandshakeError>,
    },
}

/// Why a transfer did not end in a receipt, or an operation on one was refused. Cheap to clone: several may wait for the same end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransferError {
    /// The parameters are wrong.
    #[error("kv_transfer_params cannot be used: {0}")]
    ParamsInvalid(ParamsProblem),
    /// No such transfer, or forgotten by now.
    #[error("there is no transfer {0}")]
    NotFound(TransferId),
    /// The attempt's key is taken.
    #[error("attempt {attempt} already stands for another rank, engine or request")]
    AttemptConflict {
        /// The key.
        attempt: AttemptId,
    },
    /// The prefill is being moved, or has been.
    #[error("{request} is moved by transfer {by} already, and its prefill engine frees it when that has landed")]
    SourceTaken {
        /// P's request.
        request: EngineRequestId,
        /// The other transfer.
        by: TransferId,
    },
    /// The prefill has been moved.
    #[error("{request} was moved by an earlier transfer, and its prefill engine has been told to free it")]
    SourceMoved {
        /// P's request.
        request: EngineRequestId,
    },
    /// A claim for something that is not (or no longer) landed.
    #[error("transfer {transfer} is {state}, only a landed one can be claimed")]
    NotLanded {
        /// Which.
        transfer: TransferId,
        /// Its phase.
        state: &'static str,
    },
    /// Given up on request.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// Not our rank.
    #[error("DP rank {rank} is not of this pod, which owns ranks {} to {}", owned.start, owned.end.saturating_sub(1))]
    RankUnknown {
        /// Asked for (global).
        rank: DpRank,
        /// Owned (global).
        owned: Range<u16>,
    },
    /// Larger than the arena.
    #[error("the request has {blocks} blocks, the staging arena {capacity}")]
    RequestExceedsStaging {
        /// Needed.
        blocks: u32,
        /// All slots of the arena that are not in quarantine.
        capacity: u32,
    },
    /// The rank takes no work.
    #[error("DP rank {rank} is {}: {}", state.as_str(), reasons.join("; "))]
    RankNotReady {
        /// Which (global).
        rank: DpRank,
        /// Its state.
        state: super::RankState,
        /// Why.
        reasons: Vec<String>,
    },
    /// No new work.
    #[error("the sidecar is shutting down")]
    ShuttingDown,
    /// No staging in time.
    #[error("no {blocks} staging blocks became free within {waited:?}")]
    StagingFull {
        /// Needed.
        blocks: u32,
        /// Waited.
        waited: Duration,
    },
    /// Too many commands at once.
    #[error("DP rank {rank} has too many requests in line")]
    Busy {
        /// Which (global).
        rank: DpRank,
    },
    /// The request names a peer that must not be connected to.
    #[error("connect to the peer that the request names: {0}")]
    PeerNotAllowed(NotAllowed),
    /// P's name leads nowhere.
    #[error("look up {endpoint}, where the request says that P's side channel is")]
    PeerUnknown {
        /// P's side channel.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// P's side channel does not answer.
    #[error("ask {endpoint} for its agent metadata{}", here(endpoint))]
    PeerUnreachable {
        /// P's side channel.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: Arc<AskError>,
    },
    /// The agent cannot use P's metadata.
    #[error("load the agent metadata of {endpoint}")]
    PeerNotLoaded {
        /// P's side channel.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: Arc<FabricError>,
    },
    /// Another engine answers there now.
    #[error("engine {expected} prefilled, but {found} answers at {endpoint}{}", here(endpoint))]
    PeerChanged {
        /// P's side channel.
        endpoint: Endpoint,
        /// Whose blocks they are.
        expected: EngineId,
        /// Who is there.
        found: EngineId,
    },
    /// P's blocks cannot be D's.
    #[error("engine {peer} cannot be read by this rank's engine: {refusal}")]
    LayoutMismatch {
        /// P's engine.
        peer: EngineId,
        /// Why.
        refusal: HandshakeRefusal,
    },
    /// The peer speaks something we do not know.
    #[error("engine {peer} uses something that is not supported: {refusal}")]
    VersionUnsupported {
        /// P's engine.
        peer: EngineId,
        /// Why.
        refusal: HandshakeRefusal,
    },
    /// The blocks may have been reused.
    #[error("the lease of {request} was over: {age:?} old, {lease:?} long")]
    LeaseExpired {
        /// P's request.
        request: EngineRequestId,
        /// Since P finished, or since the last heartbeat.
        age: Duration,
        /// How long it was good for.
        lease: Duration,
    },
    /// NIXL could not read.
    #[error("read {blocks} blocks from engine {peer}{}", of_gpu(*gpu))]
    ReadFailed {
        /// P's engine.
        peer: EngineId,
        /// Logical blocks.
        blocks: u32,
        /// GPU memory is at one end, or at both.
        gpu: bool,
        /// Why.
        #[source]
        source: Arc<FabricError>,
    },
    /// The descriptors could not be made.
    #[error("plan the read of {blocks} blocks from engine {peer}")]
    PlanFailed {
        /// P's engine.
        peer: EngineId,
        /// Logical blocks.
        blocks: u32,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// P's sidecar has not said what P holds.
    #[error("ask the prefill pod's sidecar at {sidecar} for digests of the blocks")]
    NoSourceDigest {
        /// Who was asked.
        sidecar: http::Uri,
        /// Why there are none.
        #[source]
        source: Arc<SourceError>,
    },
    /// Something else has landed.
    #[error("{differing} of {compared} digests of what landed differ from those of engine {peer}")]
    DigestMismatch {
        /// P's engine.
        peer: EngineId,
        /// Pages that differ.
        differing: usize,
        /// Pages compared.
        compared: usize,
    },
    /// The comparison came to no end.
    #[error("what landed could not be compared with the source")]
    NotCompared,
    /// The rank's engine restarted under the transfer.
    #[error("the engine of DP rank {rank} restarted")]
    EngineRestarted {
        /// Which (global).
        rank: DpRank,
    },
    /// Out of time.
    #[error("the transfer was not done at its deadline")]
    Deadline,
}

/// What is to be looked at when GPU memory cannot be read.
fn of_gpu(gpu: bool) -> &'static str {
    if gpu {
        " with GPU memory at one end: if no such read ends well, UCX has no way to it (kvgate doctor in both pods: gpu, cuda-ipc, ucx-tls; docs/gpu.md)"
    } else {
        ""
    }
}

/// What may be wrong with P's word on where it is, when it leads nowhere.
fn here(endpoint: &Endpoint) -> &'static str {
    let name = endpoint.host.eq_ignore_ascii_case("localhost");
    let address = endpoint.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
    if name || address {
        ": that is this pod itself; the prefill engine's VLLM_NIXL_SIDE_CHANNEL_HOST must be an address of its own pod"
    } else {
        ""
    }
}

impl TransferError {
    /// The stable code, with status and what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::ParamsInvalid(_) => Code::ParamsInvalid,
            Self::NotFound(_) => Code::NotFound,
            Self::AttemptConflict { .. } | Self::SourceTaken { .. } | Self::SourceMoved { .. } => Code::AttemptConflict,
            Self::NotLanded { .. } | Self::Cancelled => Code::Cancelled,
            Self::RankUnknown { .. } => Code::RankUnknown,
            Self::RequestExceedsStaging { .. } => Code::RequestExceedsStaging,
            Self::RankNotReady { .. } | Self::EngineRestarted { .. } => Code::RankNotReady,
            Self::ShuttingDown => Code::ShuttingDown,
            Self::StagingFull { .. } | Self::Busy { .. } => Code::StagingFull,
            Self::PeerNotAllowed(_) => Code::PeerNotAllowed,
            Self::PeerUnknown { .. } | Self::PeerUnreachable { .. } | Self::PeerNotLoaded { .. } => {
                Code::PeerUnreachable
            }
            Self::PeerChanged { .. } => Code::PeerChanged,
            Self::LayoutMismatch { .. } => Code::LayoutMismatch,
            Self::VersionUnsupported { .. } => Code::VersionUnsupported,
            Self::LeaseExpired { .. } => Code::LeaseExpired,
            Self::NoSourceDigest { source, .. } => source.code(),
            Self::DigestMismatch { .. } => Code::DigestMismatch,
            Self::ReadFailed { .. } | Self::PlanFailed { .. } | Self::NotCompared => Code::TransferFailed,
            Self::Deadline => Code::Deadline,
        }
    }
}

/// Why an operation on P's handles was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandleError {
    /// The rank, or the parameters, or the whole pod is not right for it.
    #[error(transparent)]
    Refused(#[from] TransferError),
    /// No such handle, or forgotten by now.
    #[error("DP rank {rank} has no handle {request}")]
    NotFound {
        /// Which (global).
        rank: DpRank,
        /// The engine's request.
        request: EngineRequestId,
    },
    /// The pod has the other role.
    #[error("this pod's role is decode: its staging is freed by DELETE on the transfer")]
    WrongRole,
}

impl HandleError {
    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(error) => error.code(),
            Self::NotFound { .. } => Code::NotFound,
            Self::WrongRole => Code::ParamsInvalid,
        }
    }
}

/// Why a pod cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value that cannot be.
    #[error("{0}")]
    Config(&'static str),
    /// The GPUs that staging is to be on.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// Staging that the host cannot hold over all ranks.
    #[error(
        "{ranks} ranks with {each} bytes of staging each leave less than 1 GiB of the host's {available} available bytes: \
         give less with --staging-bytes"
    )]
    HostMemory {
        /// DP ranks of the pod.
        ranks: u16,
        /// Bytes of staging for each.
        each: u64,
        /// What the host says it has.
        available: u64,
    },
    /// The virtual engine's port.
    #[error("listen on {endpoint} for the side channel of DP rank {rank}")]
    Listen {
        /// Where.
        endpoint: Endpoint,
        /// For which rank (global).
        rank: DpRank,
        /// Why.
        #[source]
        source: ServeError,
    },
}

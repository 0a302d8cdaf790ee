//! Block handles: who holds which blocks of a rank.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::{DpRank, EngineId, EngineRequestId, TransferId};
use vllm_wire::params::KvTransferParams;

use super::StagingFigures;

/// What the router tells about a finished prefill.
#[derive(Clone, Debug)]
pub struct ReportHandle {
    /// P's rank (global).
    pub dp_rank: DpRank,
    /// P's parameters, as the engine gave them.
    pub params: KvTransferParams,
    /// P's lease; the configured one otherwise.
    pub lease: Option<Duration>,
    /// How long ago P had certainly not finished yet.
    pub age: Duration,
}

/// Why a prefill's handle is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetGo {
    /// Nobody will read its blocks: the engine is to be told.
    Abandoned,
    /// They have been read, and who read them has told the engine.
    Read,
}

/// Where a handle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleState {
    /// P: pinned in the engine, as far as anyone said.
    Pinned,
    /// P: its lease is over by our count and nobody has said that it was read or given up.
    Leaked,
    /// P: the engine was told that nobody will read it.
    Released,
    /// D: in staging, being read into.
    Filling,
    /// D: in staging, not wanted any more, but hardware may still write to it.
    Quiescing,
    /// D: in staging, waiting to be collected.
    Landed,
    /// D: in staging, its decode leg has ended, for a quiet period.
    Ending,
}

impl HandleState {
    /// All states.
    pub const ALL: [Self; 7] =
        [Self::Pinned, Self::Leaked, Self::Released, Self::Filling, Self::Quiescing, Self::Landed, Self::Ending];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Leaked => "leaked",
            Self::Released => "released",
            Self::Filling => "filling",
            Self::Quiescing => "quiescing",
            Self::Landed => "landed",
            Self::Ending => "ending",
        }
    }
}

/// Blocks that are held for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandleSnapshot {
    /// The rank that holds them (global).
    pub dp_rank: DpRank,
    /// The engine (P's own, or the virtual one of D's sidecar).
    pub engine_id: EngineId,
    /// The request by which that engine knows them.
    pub request_id: EngineRequestId,
    /// Logical blocks.
    pub blocks: u32,
    /// P: the engine's blocks, per group in prompt order. D: the slots, ascending. None where there were too many to keep.
    pub block_ids: Option<Arc<[Vec<u32>]>>,
    /// Bytes, all TP shards; 0 when the geometry is unknown.
    pub bytes: u64,
    /// P, and D until it has landed: what is left of P's lease. D from then on: what is left of the claim.
    pub lease_left: Duration,
    /// D: which transfer holds them.
    pub transfer: Option<TransferId>,
    /// Where it is.
    pub state: HandleState,
}

/// A rank's handles and its staging, both of the same moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankHandles {
    /// Which (global).
    pub dp_rank: DpRank,
    /// Handles alive or recently ended, by request id.
    pub handles: Vec<HandleSnapshot>,
    /// Staging (decode role; zeros otherwise).
    pub staging: StagingFigures,
}

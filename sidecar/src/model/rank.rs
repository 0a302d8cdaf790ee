//! Ranks as the API shows them, and how they end.

use std::sync::Arc;

use kv::ids::{DpRank, EngineId, LocalRank};
use kv::layout::KvLayout;
use side_channel::Endpoint;

use super::{RankLoad, RankState, StagingKind};

/// A rank's staging in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagingFigures {
    /// Slots in all.
    pub capacity_blocks: u32,
    /// Slots held by transfers, waiting to be collected or being zeroed.
    pub used_blocks: u32,
    /// Those of them that are being zeroed before they are free: no handle has them any more.
    pub zeroing_blocks: u32,
    /// Slots that hardware may still write to.
    pub quarantined_blocks: u32,
    /// Bytes of one slot, all TP shards.
    pub block_bytes: u64,
    /// Where it is; none without staging.
    pub kind: Option<StagingKind>,
    /// The GPU that TP shard 0's is on, if it is on one.
    pub device: Option<u64>,
}

/// A rank as the API shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct RankSnapshot {
    /// Global.
    pub dp_rank: DpRank,
    /// Within this pod.
    pub local_rank: LocalRank,
    /// Whether it can take work.
    pub state: RankState,
    /// Why it is not simply ready, in words.
    pub reasons: Vec<String>,
    /// The engine's id, once its side channel has told it.
    pub engine_id: Option<EngineId>,
    /// The engine's version.
    pub engine_version: Option<String>,
    /// The engine's compatibility hash: P and D must have the same.
    pub compatibility_hash: Option<String>,
    /// The virtual prefill engine's id (decode role).
    pub virtual_engine_id: Option<EngineId>,
    /// Where the virtual engine listens (decode role).
    pub side_channel: Option<Endpoint>,
    /// The engine's geometry (TP shard 0).
    pub layout: Option<Arc<KvLayout>>,
    /// TP shards.
    pub tp_size: u16,
    /// What the engine says of its own load and of NIXL; zeros before its first word.
    pub load: RankLoad,
    /// Staging (decode role; zeros otherwise).
    pub staging: StagingFigures,
    /// Transfers without an end yet.
    pub in_flight: u32,
    /// Handles alive: pinned in the engine (P) or landed in staging (D).
    pub handles: u32,
    /// Those of D whose decode leg may still be open, and those of P that are pinned: what a drain waits for.
    pub awaited: u32,
    /// No new work is taken.
    pub draining: bool,
}

impl RankSnapshot {
    /// A rank of which nothing is known yet, in a pod whose first one has the global number `offset`.
    pub(crate) fn unknown(local_rank: LocalRank, offset: u16, tp_size: u16) -> Self {
        let (state, reasons) = kv::readiness::Facts::default().assess();
        Self {
            dp_rank: local_rank.global(offset),
            local_rank,
            state,
            reasons,
            engine_id: None,
            engine_version: None,
            compatibility_hash: None,
            virtual_engine_id: None,
            side_channel: None,
            layout: None,
            tp_size,
            load: RankLoad::default(),
            staging: StagingFigures::default(),
            in_flight: 0,
            handles: 0,
            awaited: 0,
            draining: false,
        }
    }
}

/// All ranks of a pod, in order of their numbers. Whoever changes one leaves the others where they are.
pub type AllRanks = Arc<Vec<Arc<RankSnapshot>>>;

/// How a shutdown ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutDown {
    /// Everything ended by itself.
    Drained,
    /// Work was cut off, all memory is quiet.
    Stopped,
    /// Hardware may still write: memory stays pinned until the process ends.
    Stuck,
}

//! Ranks as JSON.

use kv::layout::{KvLayout, MemoryKind};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::openapi::schemas;
use crate::model::{RankSnapshot, StagingFigures, StagingKind};

/// A rank with everything that a router or a person asks about it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RankJson {
    /// Global
    dp_rank: u16,
    local_rank: u16,
    #[schema(schema_with = schemas::rank_state)]
    state: &'static str,
    /// Why it is not ready
    reasons: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compatibility_hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_engine_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    side_channel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layout: Option<LayoutJson>,
    tp_size: u16,
    load: LoadJson,
    staging: StagingJson,
    in_flight: u32,
    handles: u32,
    draining: bool,
}

/// The engine's KV cache.
#[derive(Debug, Serialize, ToSchema)]
struct LayoutJson {
    regions: usize,
    block_tokens: u64,
    kernel_per_logical: u32,
    num_kernel_blocks: u32,
    layout: String,
    backend: String,
    /// `dram` or `vram`
    memory: &'static str,
    device: u64,
}

/// What the engine's own metrics say.
#[derive(Debug, Serialize, ToSchema)]
struct LoadJson {
    running: u64,
    waiting: u64,
    kv_usage: f64,
    nixl_failed: u64,
    nixl_failed_notifications: u64,
    nixl_expired: u64,
    nixl_late_notifications: u64,
}

/// The rank's arena; all zero on P.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StagingJson {
    capacity_blocks: u32,
    used_blocks: u32,
    zeroing_blocks: u32,
    quarantined_blocks: u32,
    block_bytes: u64,
    /// `dram`, `pinned` or `vram`; absent without staging
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<&'static str>,
    /// The GPU of TP shard 0, in `vram`
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<u64>,
}

impl From<&RankSnapshot> for RankJson {
    fn from(rank: &RankSnapshot) -> Self {
        Self {
            dp_rank: rank.dp_rank.0,
            local_rank: rank.local_rank.0,
            state: rank.state.as_str(),
            reasons: rank.reasons.clone(),
            engine_id: rank.engine_id.as_ref().map(|id| id.as_str().to_owned()),
            engine_version: rank.engine_version.clone(),
            compatibility_hash: rank.compatibility_hash.clone(),
            virtual_engine_id: rank.virtual_engine_id.as_ref().map(|id| id.as_str().to_owned()),
            side_channel: rank.side_channel.as_ref().map(ToString::to_string),
            layout: rank.layout.as_deref().map(LayoutJson::from),
            tp_size: rank.tp_size,
            load: LoadJson {
                running: rank.load.running,
                waiting: rank.load.waiting,
                // JSON has no word for NaN or infinity.
                kv_usage: if rank.load.kv_usage.is_finite() { rank.load.kv_usage } else { 0.0 },
                nixl_failed: rank.load.nixl_failed,
                nixl_failed_notifications: rank.load.nixl_failed_notifications,
                nixl_expired: rank.load.nixl_expired,
                nixl_late_notifications: rank.load.nixl_late_notifications,
            },
            staging: StagingJson::from(&rank.staging),
            in_flight: rank.in_flight,
            handles: rank.handles,
            draining: rank.draining,
        }
    }
}

impl From<&StagingFigures> for StagingJson {
    fn from(staging: &StagingFigures) -> Self {
        Self {
            capacity_blocks: staging.capacity_blocks,
            used_blocks: staging.used_blocks,
            zeroing_blocks: staging.zeroing_blocks,
            quarantined_blocks: staging.quarantined_blocks,
            block_bytes: staging.block_bytes,
            memory: staging.kind.map(StagingKind::as_str),
            device: staging.device,
        }
    }
}

impl From<&KvLayout> for LayoutJson {
    fn from(layout: &KvLayout) -> Self {
        Self {
            regions: layout.regions.len(),
            block_tokens: u64::from(layout.kernel_block_tokens) * u64::from(layout.kernel_per_logical),
            kernel_per_logical: layout.kernel_per_logical,
            num_kernel_blocks: layout.regions.first().map_or(0, |region| region.num_blocks),
            layout: layout.layout.clone(),
            backend: layout.backend.clone(),
            memory: match layout.memory {
                MemoryKind::Dram => "dram",
                MemoryKind::Vram => "vram",
            },
            device: layout.device,
        }
    }
}

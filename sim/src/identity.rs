//! What one rank says about itself on the side channel: engine id, compatibility hash, geometry and, per TP shard, the
//! agent's metadata and base addresses.

use bytes::Bytes;
use kv::ids::EngineId;
use kv::layout::{KvLayout, MemoryKind, RegionGroup, RegionLayout};
use nixl::{MemKind, Memory};
use vllm_wire::handshake::{AgentMetadata, Payload};
use vllm_wire::hash::{Factors, compatibility_hash};
use vllm_wire::versions::{V0_32_0, Version, supported};

use crate::geometry::Geometry;

/// The vLLM that we imitate unless told otherwise.
pub const VLLM_VERSION: &str = V0_32_0.release;

/// vLLM's word for the layout of the CPU attention back end, which we imitate.
const LAYOUT: &str = "LBHNC";
const BACKEND: &str = "CPU_ATTN";

/// One rank's identity.
#[derive(Debug)]
pub struct Identity {
    /// Its engine id.
    pub engine: EngineId,
    /// Whose messages it speaks: those of the release that it says it is, the newest one's if nobody knows that release.
    pub version: &'static Version,
    /// The compatibility hash that its readers compare.
    pub hash: String,
    /// The geometry of each of its shards, with base addresses of nobody (0), as if in host memory.
    pub layout: KvLayout,
}

impl Identity {
    /// The identity of an engine that serves `model`.
    pub fn new(engine: EngineId, vllm_version: &str, model: &str, geometry: &Geometry) -> Self {
        let version = supported(vllm_version).unwrap_or(&V0_32_0);
        let hash = compatibility_hash(&factors((vllm_version, version.connector), model, geometry));
        Self { engine, version, hash, layout: layout(geometry, 0) }
    }

    /// The handshake payload of the shard whose arena is `memory` and whose agent has `agent_metadata`.
    pub fn payload(&self, geometry: &Geometry, memory: &Memory, agent_metadata: &Bytes) -> Payload {
        let layout = layout(geometry, memory.base());
        let regions = &layout.regions;
        let kind = match memory.kind() {
            MemKind::Dram => "DRAM",
            MemKind::Vram => "VRAM",
        };
        let metadata = AgentMetadata {
            engine_id: self.engine.clone(),
            agent_metadata: agent_metadata.clone(),
            kv_caches_base_addr: regions.iter().map(|region| region.base).collect(),
            device_id: memory.device_id(),
            num_blocks: geometry.num_blocks,
            block_lens: regions.iter().map(|region| region.block_len).collect(),
            block_strides: regions.iter().map(|region| region.block_stride).collect(),
            kv_cache_layout: layout.layout.clone(),
            block_size: layout.kernel_block_tokens,
            ssm_sizes: (0, 0),
            attn_backend_name: layout.backend.clone(),
            physical_blocks_per_logical_kv_block: layout.kernel_per_logical,
            region_num_blocks: Some(regions.iter().map(|region| region.num_blocks).collect()),
            region_group_ids: Some(regions.iter().map(|_| 0).collect()),
            region_names: Some(regions.iter().map(|region| region.name.clone()).collect()),
            region_mem_types: Some(regions.iter().map(|_| kind.to_owned()).collect()),
            dcp_size: 1,
            pcp_size: 1,
            ple_block_len: None,
            region_members: Vec::new(),
            packed_member_layouts: Vec::new(),
        };
        Payload { compatibility_hash: self.hash.clone(), agent_metadata: metadata.encode(self.version) }
    }
}

fn layout(geometry: &Geometry, base: u64) -> KvLayout {
    let region = |layer: u32| RegionLayout {
        name: format!("model.layers.{layer}.self_attn.attn"),
        base: base.saturating_add(u64::from(layer) * geometry.region_bytes()),
        block_len: geometry.page_bytes(),
        block_stride: geometry.page_bytes(),
        num_blocks: geometry.num_blocks,
        group: RegionGroup::One(0),
    };
    KvLayout {
        regions: (0..geometry.layers).map(region).collect(),
        kernel_per_logical: 1,
        kernel_block_tokens: geometry.block_tokens,
        layout: LAYOUT.to_owned(),
        backend: BACKEND.to_owned(),
        memory: MemoryKind::Dram,
        device: 0,
    }
}

fn factors((vllm_version, connector): (&str, u32), model: &str, geometry: &Geometry) -> Factors {
    Factors {
        vllm_version: vllm_version.to_owned(),
        nixl_connector_version: connector,
        model: model.to_owned(),
        dtype: dtype(geometry.dtype_bytes),
        num_kv_heads: geometry.kv_heads,
        head_size: geometry.head_size,
        num_hidden_layers: geometry.layers,
        attn_backend_name: BACKEND.to_owned(),
        cache_dtype: "auto".to_owned(),
        is_hma_enabled: false,
        speculative_config: serde_json::Value::Null,
        transfer_mode: "pull".to_owned(),
    }
}

/// torch's name for the usual element type of that size.
fn dtype(bytes: u32) -> String {
    match bytes {
        1 => "torch.float8_e4m3fn".to_owned(),
        2 => "torch.bfloat16".to_owned(),
        4 => "torch.float32".to_owned(),
        other => format!("sim.{other}-byte"),
    }
}

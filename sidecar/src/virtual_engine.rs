//! The prefill engine that the sidecar plays towards D: it repeats D's own geometry and hash with our engine id, agents and addresses
//! (`docs/vllm-nixl-protocol.md` §10b).
//!
//! The [`Desk`] is bound for as long as the pod lives, so the port stays; what it answers changes with the [`VirtualEngine`] behind it, and
//! that one is made anew, with a fresh id, for every start of D's engine: D caches what it has learned by engine id.

use std::sync::Arc;

use bytes::Bytes;
use kv::blocks::{GroupedBlocks, GroupedBlocksError};
use kv::copy::SlotAssignment;
use kv::ids::{BlockId, EngineId, EngineRequestId};
use kv::layout::{KvLayout, MemoryKind};
use parking_lot::RwLock;
use side_channel::{Answer, Answered, Endpoint};
use tokio::time::Instant;
use vllm_wire::handshake::{self, AgentMetadata, Payload};
use vllm_wire::params::KvTransferParams;
use vllm_wire::versions::Version;

/// What one virtual engine answers and calls itself.
#[derive(Debug)]
pub(crate) struct VirtualEngine {
    /// Fresh per engine start.
    pub id: EngineId,
    /// The release of D's engine, which is also ours.
    version: &'static Version,
    /// One per TP shard.
    payloads: Vec<Payload>,
}

/// One TP shard as the virtual engine advertises it.
pub(crate) struct AdvertisedShard<'a> {
    /// What D's own engine says of this shard.
    pub template: &'a AgentMetadata,
    /// The arena.
    pub layout: &'a KvLayout,
    /// The serving agent's blob.
    pub agent: Bytes,
}

impl VirtualEngine {
    /// Puts together what the shards answer.
    pub(crate) fn new(id: EngineId, version: &'static Version, hash: &str, shards: &[AdvertisedShard<'_>]) -> Self {
        let payload = |shard: &AdvertisedShard<'_>| Payload {
            compatibility_hash: hash.to_owned(),
            agent_metadata: advertise(&id, shard).encode(version),
        };
        let payloads = shards.iter().map(payload).collect();
        Self { id, version, payloads }
    }

    /// The answer's first frame, if this is a question that D's release asks, for a shard that is there.
    fn payload(&self, question: &[u8]) -> Option<&Payload> {
        let asked = handshake::parse_request(self.version, question).ok().filter(|asked| asked.pp == 0)?;
        self.payloads.get(usize::from(asked.tp.0))
    }

    /// What D is sent instead of P's parameters.
    ///
    /// # Errors
    /// Never for slots that came from an allocator.
    pub(crate) fn params_for_decode(
        &self,
        source: &KvTransferParams,
        at: &Endpoint,
        slots: &SlotAssignment,
        request: &EngineRequestId,
    ) -> Result<KvTransferParams, GroupedBlocksError> {
        let as_blocks = |slots: &Vec<kv::ids::SlotId>| slots.iter().map(|slot| BlockId(slot.0)).collect();
        let mut params = source.clone();
        params.do_remote_prefill = true;
        params.do_remote_decode = false;
        params.remote_block_ids = GroupedBlocks::new(slots.groups().iter().map(as_blocks).collect())?;
        params.remote_engine_id = self.id.clone();
        params.remote_request_id = request.clone();
        params.remote_host.clone_from(&at.host);
        params.remote_port = at.port;
        Ok(params)
    }
}

/// D's own metadata with our id, agent and addresses.
fn advertise(id: &EngineId, shard: &AdvertisedShard<'_>) -> AgentMetadata {
    let regions = &shard.layout.regions;
    let mut metadata = shard.template.clone();
    metadata.engine_id = id.clone();
    metadata.agent_metadata = shard.agent.clone();
    metadata.kv_caches_base_addr = regions.iter().map(|region| region.base).collect();
    metadata.device_id = shard.layout.device;
    metadata.num_blocks = regions.first().map_or(0, |region| region.num_blocks);
    metadata.region_num_blocks = Some(regions.iter().map(|region| region.num_blocks).collect());
    let memory = match shard.layout.memory {
        MemoryKind::Dram => "DRAM",
        MemoryKind::Vram => "VRAM",
    };
    metadata.region_mem_types = Some(vec![memory.to_owned(); regions.len()]);
    metadata
}

/// The listener's answers.
#[derive(Debug)]
pub(crate) struct Desk {
    engine: RwLock<Option<Arc<VirtualEngine>>>,
    opened: Instant,
}

impl Desk {
    /// A desk that answers nothing yet.
    pub(crate) fn new() -> Self {
        Self { engine: RwLock::new(None), opened: Instant::now() }
    }

    /// Answers for this engine from now on; for none with `None`.
    pub(crate) fn set(&self, engine: Option<Arc<VirtualEngine>>) {
        *self.engine.write() = engine;
    }
}

impl Answer for Desk {
    fn answer(&self, request: &[u8]) -> Answered {
        let engine = self.engine.read().clone();
        let payload = engine.as_ref().and_then(|engine| engine.payload(request));
        let Some(payload) = payload else { return Answered::Ignore };
        // vLLM sends its own monotonic clock here; only differences of it mean anything.
        let timestamp = self.opened.elapsed().as_secs_f64();
        Answered::Reply(handshake::reply(payload, timestamp))
    }
}

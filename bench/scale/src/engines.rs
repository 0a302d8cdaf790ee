//! A prefill engine and the ranks of a decode engine, as far as a sidecar can tell: pages, side channels, NIXL agents on a network in memory.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use cuda::Gpu;
use futures_util::future::BoxFuture;
use http::StatusCode;
use kv::ids::{EngineId, EngineRequestId, TpRank};
use nixl::loopback::LoopbackNet;
use nixl::{AgentName, Fabric, HugePages, Memory};
use parking_lot::Mutex;
use side_channel::{Answer, Answered, Endpoint, InProcess, Server, SideChannel as _};
use sidecar::engine_http::{EngineHttp, GetError, Page};
use sidecar::fabrics::{Fabrics, MadeAgent};
use tokio_util::task::TaskTracker;
use vllm_wire::handshake::{self, AgentMetadata, Payload};
use vllm_wire::notif;
use vllm_wire::versions::V0_32_0;

/// Regions of a cache, and bytes of a block in one of them: a block takes no time to copy.
const REGIONS: usize = 2;
const BLOCK: u64 = 64;
/// Bytes of one block over all regions: of one staging slot.
pub(crate) const SLOT_BYTES: u64 = BLOCK * 2;
/// Blocks of each engine's cache.
pub(crate) const POOL: u32 = 1024;
/// The host that everyone here is on; its ports are those of a side channel in memory.
pub(crate) const HOST: &str = "127.0.0.1";
const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Longest wait for an answer in memory.
const PATIENCE: Duration = Duration::from_secs(30);

/// Agents in memory.
#[derive(Clone)]
pub(crate) struct Loopback(pub(crate) LoopbackNet);

impl std::fmt::Debug for Loopback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Loopback")
    }
}

impl Fabrics for Loopback {
    fn pull(&self, name: AgentName, _: Option<Gpu>) -> MadeAgent {
        let agent: Arc<dyn Fabric> = self.0.agent(name);
        Box::pin(async { Ok(agent) })
    }

    fn serve(&self, name: AgentName, gpu: Option<Gpu>) -> MadeAgent {
        self.pull(name, gpu)
    }
}

/// The pod's pages, with figures for each rank.
#[derive(Debug)]
pub(crate) struct Pages {
    metrics: Bytes,
}

impl Pages {
    pub(crate) fn of(ranks: u16) -> Self {
        let mut metrics = String::from("process_start_time_seconds 1\n");
        for rank in 0..ranks {
            for name in ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"] {
                // Writing to a string cannot fail.
                writeln!(metrics, "vllm:{name}{{engine=\"{rank}\",model_name=\"m\"}} 0").unwrap_or_default();
            }
        }
        Self { metrics: metrics.into() }
    }
}

impl EngineHttp for Pages {
    fn get<'a>(&'a self, path: &'static str, _: Duration) -> BoxFuture<'a, Result<Page, GetError>> {
        let body = match path {
            "/version" => Bytes::from_static(b"{\"version\":\"0.32.0\"}"),
            "/metrics" => self.metrics.clone(),
            _ => Bytes::new(),
        };
        Box::pin(async { Ok(Page { status: StatusCode::OK, body }) })
    }
}

struct Desk(Payload);

impl Answer for Desk {
    fn answer(&self, request: &[u8]) -> Answered {
        match handshake::parse_request(&V0_32_0, request) {
            Ok(request) if request.pp == 0 && request.tp == TpRank(0) => {
                Answered::Reply(handshake::reply(&self.0, 1.0))
            }
            Ok(_) | Err(_) => Answered::Die,
        }
    }
}

/// One rank of an engine.
pub(crate) struct Engine {
    agent: Arc<dyn Fabric>,
    /// Keeps its cache registered.
    _region: nixl::Region,
    _server: Server,
    /// The virtual engine that it has collected from.
    source: Mutex<Option<AgentName>>,
}

impl Engine {
    /// An engine whose side channel is at `port`. Whatever it is told is read and forgotten.
    pub(crate) async fn start(
        (net, channel): (&Loopback, &InProcess),
        id: &str,
        port: u16,
        tasks: &TaskTracker,
    ) -> Result<Self> {
        let agent: Arc<dyn Fabric> = net.0.agent(AgentName::new(format!("{id}-agent"))?);
        let region = agent.register(Memory::host(SLOT_BYTES * u64::from(POOL), HugePages::Off)?).await?;
        let mut notes = agent.take_notifications().context("its notifications")?;
        tasks.spawn(async move { while notes.recv().await.is_some() {} });
        let metadata = metadata(id, agent.local_metadata().await?, region.base());
        let payload = Payload { compatibility_hash: HASH.to_owned(), agent_metadata: metadata.encode(&V0_32_0) };
        let server = channel.serve(&Endpoint::new(HOST, port), Arc::new(Desk(payload))).await?;
        Ok(Self { agent, _region: region, _server: server, source: Mutex::new(None) })
    }

    /// Says that a request has been read from the virtual engine at `port`.
    pub(crate) async fn collect(&self, channel: &InProcess, port: u16, request: &str) -> Result<()> {
        let known = self.source.lock().clone();
        let source = match known {
            Some(source) => source,
            None => {
                let question = handshake::request(&V0_32_0, 0, TpRank(0));
                let frames = channel.ask(&Endpoint::new(HOST, port), question, PATIENCE).await?;
                let told = handshake::parse_reply(&V0_32_0, &frames)?.payload;
                let theirs = AgentMetadata::decode(&told.agent_metadata)?;
                let source = self.agent.load_peer(theirs.agent_metadata).await?;
                self.source.lock().insert(source).clone()
            }
        };
        Ok(self.agent.notify(source, notif::done(&EngineRequestId::new(request), 1)).await?)
    }
}

fn metadata(id: &str, blob: Bytes, base: u64) -> AgentMetadata {
    let bytes = BLOCK * u64::from(POOL);
    AgentMetadata {
        engine_id: EngineId::new(id),
        agent_metadata: blob,
        kv_caches_base_addr: (0..).map(|region| base + region * bytes).take(REGIONS).collect(),
        device_id: 0,
        num_blocks: POOL,
        block_lens: vec![BLOCK; REGIONS],
        block_strides: vec![BLOCK; REGIONS],
        kv_cache_layout: "LBHNC".to_owned(),
        block_size: 16,
        ssm_sizes: (0, 0),
        attn_backend_name: "CPU_ATTN".to_owned(),
        physical_blocks_per_logical_kv_block: 1,
        region_num_blocks: Some(vec![POOL; REGIONS]),
        region_group_ids: Some(vec![0; REGIONS]),
        region_names: Some((0..REGIONS).map(|region| format!("layers.{region}")).collect()),
        region_mem_types: Some(vec!["DRAM".to_owned(); REGIONS]),
        dcp_size: 1,
        pcp_size: 1,
        ple_block_len: None,
        region_members: Vec::new(),
        packed_member_layouts: Vec::new(),
    }
}

//! A pod between two made-up engines: P with a cache to read from, D that collects like vLLM. Everything in one process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv::blocks::GroupedBlocks;
use kv::digest::Verify;
use kv::ids::{AttemptId, BlockId, DpRank, EngineId, EngineRequestId, TpRank};
use kv::layout::RegionLayout;
use kv::readiness::RankState;
use nixl::faulty::FaultPlan;
use nixl::loopback::LoopbackNet;
use nixl::{AgentName, Fabric, HugePages, LocalDescs, Memory, Notification, Read, Region, RemoteDescs};
use parking_lot::Mutex;
use side_channel::{Answer, Answered, Endpoint, InProcess, Server, SideChannel};
use sidecar::digest::source::SourceDigests;
use sidecar::engine_http::EngineHttp;
use sidecar::fabrics::Fabrics;
use sidecar::model::{
    Faults, Landed, PodConfig, RankSnapshot, ReceiptSink, Role, StagingKind, StartError, StartTransfer,
    TransferSnapshot,
};
use sidecar::peer_allow::PeerAllow;
use sidecar::pod::{Parts, Pod};
use telemetry::trace::Spans;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vllm_wire::handshake::{self, AgentMetadata, Payload};
use vllm_wire::notif::{self, Notif};
use vllm_wire::params::KvTransferParams;
use vllm_wire::versions::V0_32_0;

use crate::parts::{LoopbackFabrics, Pages};
use crate::receipts::Receipts;
use crate::sources::Sources;

pub(crate) const REGIONS: u64 = 3;
pub(crate) const BLOCK_LEN: u64 = 64;
/// Kernel blocks per logical block.
pub(crate) const PPL: u32 = 2;
/// Tokens of a logical block.
pub(crate) const TOKENS: u64 = 32;
/// Bytes of a logical block in one shard.
pub(crate) const BLOCK_BYTES: u64 = REGIONS * BLOCK_LEN * PPL as u64;
/// Logical blocks of a fake engine's cache.
pub(crate) const POOL: u32 = 64;
pub(crate) const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
pub(crate) const SLOTS: u32 = 16;

struct FakeShard {
    agent: Arc<dyn Fabric>,
    region: Region,
    metadata: AgentMetadata,
    notes: mpsc::Receiver<Notification>,
    told: Vec<Notif>,
}

/// What an engine's side channel answers; changeable.
pub(crate) struct Desk {
    payloads: Mutex<Vec<Payload>>,
    pub(crate) asked: AtomicU64,
}

impl Answer for Desk {
    fn answer(&self, request: &[u8]) -> Answered {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let Ok(request) = handshake::parse_request(&V0_32_0, request) else { return Answered::Die };
        match self.payloads.lock().get(usize::from(request.tp.0)) {
            Some(payload) if request.pp == 0 => Answered::Reply(handshake::reply(payload, 1.0)),
            Some(_) | None => Answered::Die,
        }
    }
}

/// An engine's shards, and the GPU that their caches are on; host memory without.
#[derive(Clone)]
pub(crate) struct Cache {
    pub(crate) tp: u16,
    pub(crate) gpu: Option<cuda::Gpu>,
}

impl From<u16> for Cache {
    fn from(tp: u16) -> Self {
        Self { tp, gpu: None }
    }
}

/// A vLLM rank as far as the side channel and NIXL show it.
pub(crate) struct FakeEngine {
    pub(crate) id: EngineId,
    pub(crate) endpoint: Endpoint,
    pub(crate) desk: Arc<Desk>,
    shards: Vec<FakeShard>,
    _server: Option<Server>,
}

impl FakeEngine {
    pub(crate) async fn start(
        fabrics: &dyn Fabrics,
        net: &dyn SideChannel,
        id: &str,
        on: &Endpoint,
        cache: impl Into<Cache>,
    ) -> Self {
        let mut engine = Self::prepare(fabrics, id, on, cache.into()).await;
        let server = net.serve(on, Arc::clone(&engine.desk) as Arc<dyn Answer>).await.unwrap();
        engine.endpoint = server.local_endpoint().clone();
        engine._server = Some(server);
        engine
    }

    async fn prepare(fabrics: &dyn Fabrics, id: &str, on: &Endpoint, Cache { tp, gpu }: Cache) -> Self {
        let mut shards = Vec::new();
        for shard in 0..tp {
            let unique = uuid::Uuid::new_v4();
            let agent = fabrics.serve(AgentName::new(format!("{id}-{shard}-{unique}")).unwrap(), None).await.unwrap();
            let bytes = BLOCK_BYTES * u64::from(POOL);
            let memory = match &gpu {
                None => Memory::host(bytes, HugePages::Off).unwrap(),
                Some(gpu) => Memory::device(bytes, gpu).unwrap(),
            };
            let region = agent.register(memory).await.unwrap();
            let blob = agent.local_metadata().await.unwrap();
            let mut metadata = metadata(&EngineId::new(id), blob, region.base());
            if let Some(gpu) = &gpu {
                metadata.device_id = u64::from(gpu.ordinal());
                metadata.region_mem_types.iter_mut().flatten().for_each(|kind| "VRAM".clone_into(kind));
            }
            let notes = agent.take_notifications().unwrap();
            shards.push(FakeShard { agent, region, metadata, notes, told: Vec::new() });
        }
        let payloads = shards.iter().map(|shard| payload(&shard.metadata, HASH)).collect();
        let desk = Arc::new(Desk { payloads: Mutex::new(payloads), asked: AtomicU64::new(0) });
        Self { id: EngineId::new(id), endpoint: on.clone(), desk, shards, _server: None }
    }

    /// Answers from now on with changed metadata or another hash.
    pub(crate) fn answer_with(&self, hash: &str, change: impl Fn(&mut AgentMetadata)) {
        let changed = self.shards.iter().map(|shard| {
            let mut metadata = shard.metadata.clone();
            change(&mut metadata);
            payload(&metadata, hash)
        });
        *self.desk.payloads.lock() = changed.collect();
    }

    fn region_ranges(&self, shard: usize, block: u32) -> Vec<(u64, u64)> {
        let layout = self.shards[shard].metadata.layout().unwrap();
        let base = self.shards[shard].region.base();
        ranges_of(&layout.regions, block).into_iter().map(|(address, len)| (address - base, len)).collect()
    }

    /// Its own block as it is, of one shard and region.
    pub(crate) fn bytes(&self, block: u32) -> Vec<u8> {
        let (offset, len) = self.region_ranges(0, block)[0];
        let mut bytes = vec![1; usize::try_from(len).unwrap()];
        self.shards[0].region.read_at(offset, &mut bytes).unwrap();
        bytes
    }

    /// Writes a prompt's KV into blocks and returns what P would answer.
    pub(crate) fn prefill(&self, request: &str, blocks: &[u32]) -> KvTransferParams {
        for shard in 0..self.shards.len() {
            for (position, block) in blocks.iter().enumerate() {
                for (region, (offset, len)) in self.region_ranges(shard, *block).into_iter().enumerate() {
                    let bytes = kv_bytes(request, shard, position, region, len);
                    self.shards[shard].region.write_at(offset, &bytes).unwrap();
                }
            }
        }
        KvTransferParams {
            do_remote_prefill: true,
            do_remote_decode: false,
            remote_block_ids: GroupedBlocks::new(vec![blocks.iter().copied().map(BlockId).collect()]).unwrap(),
            remote_engine_id: self.id.clone(),
            remote_request_id: EngineRequestId::new(request),
            remote_host: self.endpoint.host.clone(),
            remote_port: self.endpoint.port,
            tp_size: u16::try_from(self.shards.len()).unwrap(),
            dcp_size: 1,
            pp_size: 1,
            remote_num_tokens: u64::try_from(blocks.len()).unwrap() * TOKENS - 5,
            transfer_mode: Some("pull".to_owned()),
            extra: serde_json::Map::from_iter([("remote_prefill_cached_tokens".to_owned(), serde_json::json!(7))]),
        }
    }

    /// Everything each shard's worker has been told so far.
    pub(crate) fn told(&mut self) -> Vec<Vec<Notif>> {
        for shard in &mut self.shards {
            while let Ok(note) = shard.notes.try_recv() {
                shard.told.push(notif::parse(&note.message).unwrap());
            }
        }
        self.shards.iter().map(|shard| shard.told.clone()).collect()
    }

    /// How often each shard was told that a request has been read.
    pub(crate) fn dones(&mut self, request: &str) -> Vec<usize> {
        let is_done =
            |note: &&Notif| matches!(note, Notif::Done { request: told, readers: 1 } if told.as_str() == request);
        self.told().iter().map(|told| told.iter().filter(is_done).count()).collect()
    }

    pub(crate) fn beats(&mut self) -> Vec<usize> {
        let is_beat = |note: &&Notif| matches!(note, Notif::Heartbeat { .. });
        self.told().iter().map(|told| told.iter().filter(is_beat).count()).collect()
    }

    /// Does what a decode rank does with its parameters up to the READ; true when the bytes are those of `request`.
    pub(crate) async fn read(&self, net: &dyn SideChannel, params: &KvTransferParams, request: &str) -> bool {
        self.read_into(net, params, request, 0).await
    }

    /// The same into D's own blocks from `first` on.
    pub(crate) async fn read_into(
        &self,
        net: &dyn SideChannel,
        params: &KvTransferParams,
        request: &str,
        first: u32,
    ) -> bool {
        let mut equal = true;
        for shard in 0..self.shards.len() {
            equal &= self.read_shard(net, params, request, (shard, first)).await;
        }
        equal
    }

    pub(crate) async fn virtual_shard(
        &self,
        net: &dyn SideChannel,
        params: &KvTransferParams,
        shard: usize,
    ) -> (AgentName, AgentMetadata) {
        let endpoint = Endpoint::new(params.remote_host.clone(), params.remote_port);
        let request = handshake::request(&V0_32_0, 0, TpRank(u16::try_from(shard).unwrap()));
        let frames = net.ask(&endpoint, request, Duration::from_secs(5)).await.unwrap();
        let payload = handshake::parse_reply(&V0_32_0, &frames).unwrap().payload;
        assert_eq!(payload.compatibility_hash, HASH);
        let theirs = AgentMetadata::decode(&payload.agent_metadata).unwrap();
        assert_eq!(theirs.engine_id, params.remote_engine_id);
        let agent = self.shards[shard].agent.load_peer(theirs.agent_metadata.clone()).await.unwrap();
        (agent, theirs)
    }

    async fn read_shard(
        &self,
        net: &dyn SideChannel,
        params: &KvTransferParams,
        request: &str,
        (shard, first): (usize, u32),
    ) -> bool {
        let (peer, theirs) = self.virtual_shard(net, params, shard).await;
        let layout = theirs.layout().unwrap();
        let own = &self.shards[shard];
        let mut equal = true;
        for (position, slot) in params.remote_block_ids.groups()[0].ids().iter().enumerate() {
            let from = ranges_of(&layout.regions, slot.0);
            let to = self.region_ranges(shard, first + u32::try_from(position).unwrap());
            let local = LocalDescs::new(&own.region, to.clone()).unwrap();
            let remote = RemoteDescs::new(&peer_memory(&layout), from).unwrap();
            let reading = own.agent.read(Read { peer: peer.clone(), local, remote, notify: None });
            reading.done.await.unwrap();
            for (region, (offset, len)) in to.into_iter().enumerate() {
                let mut bytes = vec![0; usize::try_from(len).unwrap()];
                own.region.read_at(offset, &mut bytes).unwrap();
                equal &= bytes == kv_bytes(request, shard, position, region, len);
            }
        }
        equal
    }

    /// Sends a notification to the virtual engine's shard `shard`.
    pub(crate) async fn notify(&self, net: &dyn SideChannel, params: &KvTransferParams, shard: usize, message: Bytes) {
        let (peer, _) = self.virtual_shard(net, params, shard).await;
        self.shards[shard].agent.notify(peer, message).await.unwrap();
    }

    /// Says "done" for all shards.
    pub(crate) async fn done(&self, net: &dyn SideChannel, params: &KvTransferParams) {
        for shard in 0..self.shards.len() {
            self.notify(net, params, shard, notif::done(&params.remote_request_id, 1)).await;
        }
    }
}

/// Real agents must be destroyed before the process exits, also by a test that fails: NIXL's exit handlers do not wait for their threads.
impl Drop for FakeEngine {
    fn drop(&mut self) {
        let closing: Vec<_> = self.shards.iter().map(|shard| shard.agent.close(Duration::from_secs(10))).collect();
        // Waiting is not allowed on a thread that runs async tasks.
        let waiting = std::thread::spawn(|| closing.into_iter().for_each(|closed| drop(closed.wait())));
        drop(waiting.join());
    }
}

fn peer_memory(layout: &kv::layout::KvLayout) -> nixl::PeerMemory {
    let ranges = layout.regions.iter().map(|region| region.base..region.end().unwrap()).collect();
    let kind = match layout.memory {
        kv::layout::MemoryKind::Dram => nixl::MemKind::Dram,
        kv::layout::MemoryKind::Vram => nixl::MemKind::Vram,
    };
    nixl::PeerMemory { kind, device: layout.device, ranges }
}

/// (address, length) of a logical block's part in each region.
fn ranges_of(regions: &[RegionLayout], block: u32) -> Vec<(u64, u64)> {
    let len = BLOCK_LEN * u64::from(PPL);
    regions.iter().map(|region| (region.base + u64::from(block) * len, len)).collect()
}

fn kv_bytes(request: &str, shard: usize, position: usize, region: usize, len: u64) -> Vec<u8> {
    let mut seed = request.bytes().fold(17_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    for part in [shard, position, region] {
        seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(u64::try_from(part).unwrap() + 1);
    }
    (0..len).map(|at| u8::try_from((seed.rotate_left(u32::try_from(at % 64).unwrap()) ^ at) & 0xff).unwrap()).collect()
}

fn payload(metadata: &AgentMetadata, hash: &str) -> Payload {
    Payload { compatibility_hash: hash.to_owned(), agent_metadata: metadata.encode(&V0_32_0) }
}

fn metadata(id: &EngineId, blob: Bytes, base: u64) -> AgentMetadata {
    let regions = usize::try_from(REGIONS).unwrap();
    let region_bytes = BLOCK_LEN * u64::from(POOL * PPL);
    AgentMetadata {
        engine_id: id.clone(),
        agent_metadata: blob,
        kv_caches_base_addr: (0..REGIONS).map(|region| base + region * region_bytes).collect(),
        device_id: 0,
        num_blocks: POOL * PPL,
        block_lens: vec![BLOCK_LEN; regions],
        block_strides: vec![BLOCK_LEN; regions],
        kv_cache_layout: "LBHNC".to_owned(),
        block_size: u32::try_from(TOKENS).unwrap() / PPL,
        ssm_sizes: (0, 0),
        attn_backend_name: "CPU_ATTN".to_owned(),
        physical_blocks_per_logical_kv_block: PPL,
        region_num_blocks: Some(vec![POOL * PPL; regions]),
        region_group_ids: Some(vec![0; regions]),
        region_names: Some((0..regions).map(|region| format!("layers.{region}")).collect()),
        region_mem_types: Some(vec!["DRAM".to_owned(); regions]),
        dcp_size: 1,
        pcp_size: 1,
        ple_block_len: None,
        region_members: Vec::new(),
        packed_member_layouts: Vec::new(),
    }
}

/// What can be chosen per test.
pub(crate) struct Setup {
    pub(crate) tp: u16,
    pub(crate) dp: u16,
    pub(crate) role: Role,
    pub(crate) faults: Faults,
    pub(crate) lease: Duration,
    pub(crate) zero_on_release: bool,
    pub(crate) verify: Verify,
    /// Staging slots per rank.
    pub(crate) slots: u32,
    pub(crate) staging: StagingKind,
    pub(crate) gpus: Vec<u32>,
    /// The GPU that both engines' caches are on; host memory without.
    pub(crate) engines: Option<cuda::Gpu>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            tp: 1,
            dp: 1,
            role: Role::Decode,
            faults: Faults::default(),
            lease: Duration::from_secs(30),
            zero_on_release: false,
            verify: Verify::Off,
            slots: SLOTS,
            staging: StagingKind::Dram,
            gpus: Vec::new(),
            engines: None,
        }
    }
}

/// A pod, its engine's ranks (`d`, one per DP rank), and P.
pub(crate) struct World {
    pub(crate) net: Arc<dyn SideChannel>,
    pub(crate) fabrics: Arc<dyn Fabrics>,
    pub(crate) pages: Arc<Pages>,
    pub(crate) receipts: Arc<Receipts>,
    pub(crate) p: FakeEngine,
    pub(crate) d: Vec<FakeEngine>,
    pub(crate) pod: Pod,
    pub(crate) tasks: TaskTracker,
    pub(crate) plan: FaultPlan,
    /// P's sidecar, and how its reads go wrong.
    pub(crate) sources: Arc<Sources>,
    pub(crate) source_fabrics: Arc<dyn Fabrics>,
    pub(crate) config: PodConfig,
    pub(crate) parts: Parts,
    attempts: AtomicU64,
}

pub(crate) const OFFSET: u16 = 8;

impl World {
    pub(crate) async fn new(setup: Setup) -> Self {
        let (plan, net) = (FaultPlan::new(), LoopbackNet::new());
        let fabrics = Arc::new(LoopbackFabrics { net: net.clone(), plan: plan.clone() });
        let mut world = Self::with(setup, fabrics, Arc::new(InProcess::new()), "host").await;
        world.plan = plan;
        world.source_fabrics = Arc::new(LoopbackFabrics { net, plan: world.sources.plan.clone() });
        world
    }

    pub(crate) async fn with(setup: Setup, fabrics: Arc<dyn Fabrics>, net: Arc<dyn SideChannel>, host: &str) -> Self {
        let pages = Arc::new(Pages::default());
        let (receipts, sources) = (Arc::new(Receipts::default()), Arc::new(Sources::default()));
        let cache = Cache { tp: setup.tp, gpu: setup.engines.clone() };
        let p = FakeEngine::start(&*fabrics, &*net, "engine-p", &Endpoint::new(host, 0), cache.clone()).await;
        let base = base_port(&*net, host, setup.dp).await;
        let mut d = Vec::new();
        for rank in 0..setup.dp {
            let on = Endpoint::new(host, base + rank + OFFSET);
            d.push(FakeEngine::start(&*fabrics, &*net, &format!("engine-d_dp{rank}"), &on, cache.clone()).await);
        }
        let config = PodConfig {
            role: setup.role,
            engine: http::Uri::from_static("http://engine"),
            engine_side_channel: Endpoint::new(host, base),
            side_channel_listen: Endpoint::new(host, 0),
            advertise_host: host.to_owned(),
            dp_size: setup.dp,
            tp_size: setup.tp,
            rank_offset: OFFSET,
            staging: setup.staging,
            gpus: setup.gpus,
            staging_bytes: u64::from(setup.slots) * BLOCK_BYTES * u64::from(setup.tp),
            staging_wait: Duration::from_secs(2),
            kv_lease: setup.lease,
            verify: setup.verify,
            zero_on_release: setup.zero_on_release,
            peers: PeerAllow::Anybody,
            faults: setup.faults,
        };
        let parts = Parts {
            fabrics: Arc::clone(&fabrics),
            engine: Arc::clone(&pages) as Arc<dyn EngineHttp>,
            side_channel: Arc::clone(&net),
            receipts: Arc::clone(&receipts) as Arc<dyn ReceiptSink>,
            spans: Spans::default(),
            sources: Arc::clone(&sources) as Arc<dyn SourceDigests>,
        };
        let tasks = TaskTracker::new();
        let pod = Pod::start(config.clone(), parts.clone(), &tasks, CancellationToken::new()).await.unwrap();
        let (plan, attempts) = (FaultPlan::new(), AtomicU64::new(0));
        let source_fabrics = Arc::clone(&fabrics);
        Self { net, fabrics, pages, receipts, p, d, pod, tasks, plan, sources, source_fabrics, config, parts, attempts }
    }

    /// Tries to start another pod whose virtual engine listens at `at`.
    pub(crate) async fn second_pod_at(&self, at: Endpoint) -> Result<Pod, StartError> {
        let config = PodConfig { side_channel_listen: at, ..self.config.clone() };
        Pod::start(config, self.parts.clone(), &self.tasks, CancellationToken::new()).await
    }

    /// Starts the pod anew with these faults.
    pub(crate) async fn again(mut self, faults: Faults) -> Self {
        self.pod.shut_down(Duration::ZERO).await;
        let config = PodConfig { faults, ..self.config.clone() };
        self.pod = Pod::start(config, self.parts.clone(), &self.tasks, CancellationToken::new()).await.unwrap();
        self
    }

    pub(crate) async fn ready(setup: Setup) -> Self {
        let world = Self::new(setup).await;
        world.all_ready().await;
        world
    }

    pub(crate) async fn all_ready(&self) {
        self.rank_until("ready", |rank| rank.state == RankState::Ready).await;
    }

    /// Waits until every rank is so.
    pub(crate) async fn rank_until(&self, what: &str, so: impl Fn(&RankSnapshot) -> bool) -> Vec<RankSnapshot> {
        let mut ranks = self.pod.ranks();
        let all = ranks.wait_for(|ranks| ranks.iter().all(|rank| so(rank)));
        let seen = tokio::time::timeout(Duration::from_secs(120), all).await.map(|seen| seen.unwrap().clone());
        match seen {
            Ok(seen) => seen.iter().map(|rank| (**rank).clone()).collect(),
            Err(_) => panic!("never {what}: {:#?}", self.pod.ranks().borrow()),
        }
    }

    pub(crate) fn start(&self, params: KvTransferParams) -> StartTransfer {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        StartTransfer {
            attempt: AttemptId::new(format!("attempt-{attempt}")),
            request_label: "label".to_owned(),
            dp_rank: DpRank(OFFSET),
            params,
            deadline: Instant::now() + Duration::from_secs(60),
            lease: None,
            prefill_done_age: Duration::ZERO,
            trace: None,
            verify: Verify::Off,
            source_sidecar: None,
        }
    }

    /// A prefill of `blocks` blocks pulled into staging.
    pub(crate) async fn land(&self, request: &str, blocks: &[u32]) -> Landed {
        self.pod.transfer(self.start(self.p.prefill(request, blocks))).await.unwrap()
    }

    /// The code with which a transfer of these parameters fails.
    pub(crate) async fn refused(&self, params: KvTransferParams) -> &'static str {
        self.pod.transfer(self.start(params)).await.unwrap_err().code().as_str()
    }

    pub(crate) fn shown(&self, landed: &Landed) -> TransferSnapshot {
        self.pod.get(&landed.transfer).unwrap()
    }

    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// (used, quarantined) slots of the first rank, once shown.
    pub(crate) async fn figures(&self) -> (u32, u32) {
        self.settle().await;
        let ranks = self.pod.ranks().borrow().clone();
        (ranks[0].staging.used_blocks, ranks[0].staging.quarantined_blocks)
    }

    pub(crate) fn count(&self, which: impl Fn(&sidecar::model::Counters) -> &AtomicU64) -> u64 {
        which(&self.pod.counters()).load(Ordering::Relaxed)
    }

    pub(crate) fn ended(&self) -> BTreeMap<&'static str, u64> {
        self.pod
            .counters()
            .ended()
            .into_iter()
            .map(|(ended, count)| (ended.as_str(), count))
            .filter(|(_, n)| *n > 0)
            .collect()
    }
}

/// A port with `OFFSET + dp` free ones after it.
async fn base_port(net: &dyn SideChannel, host: &str, dp: u16) -> u16 {
    struct Mute;
    impl Answer for Mute {
        fn answer(&self, _: &[u8]) -> Answered {
            Answered::Ignore
        }
    }
    for _ in 0..50 {
        let probe = net.serve(&Endpoint::new(host, 0), Arc::new(Mute)).await.unwrap();
        let port = probe.local_endpoint().port;
        probe.stop().await;
        if let Some(base) = port.checked_sub(OFFSET).filter(|base| base.checked_add(OFFSET + dp).is_some()) {
            return base;
        }
    }
    panic!("no free ports");
}

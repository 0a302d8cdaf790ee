//! One start of one rank's engine: what its side channel said, and what we built on it.
//!
//! A session lives from the engine's answer until another engine id answers. Everything in it belongs to that engine alone: agents, arenas,
//! virtual engine. Old sessions are closed, never re-used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cuda::Gpu;
use kv::ids::{DpRank, EngineId, TpRank};
use kv::layout::KvLayout;
use nixl::faulty::{FaultPlan, Faulty, ReadFault};
use nixl::{AgentName, Fabric, FabricError, Memory, Notification, Region};
use parking_lot::Mutex;
use side_channel::{AskError, Endpoint, SideChannel};
use tokio::sync::{Semaphore, mpsc};
use vllm_wire::handshake::{self, AgentMetadata, HandshakeError, UnsupportedLayout};
use vllm_wire::versions::Version;

use crate::agents::Agents;
use crate::fabrics::{Fabrics, FabricsError};
use crate::gpus::OfRank;
use crate::model::{SlowWire, StagingKind};
use crate::staging::{self, Arena, Place, StagingError};
use crate::virtual_engine::{AdvertisedShard, VirtualEngine};

/// vLLM gives each rank 5 s.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// How long one NIXL command of a session's start may take; registering gigabytes takes a second.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
/// Reads that one pull agent is given at a time; more wait for their turn. It takes 1024 commands ([`nixl::AgentConfig::pull`]): some places are
/// left for what is no read.
const READS: usize = 1000;

/// Why the engine's side channel gave nothing to build on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// No answer: worth another try.
    #[error(
        "ask the engine's side channel: {source}; vLLM listens on its VLLM_NIXL_SIDE_CHANNEL_HOST (localhost where that is not set), \
         which --engine-side-channel must name"
    )]
    Ask {
        /// Why.
        source: AskError,
    },
    /// An answer that cannot be served.
    #[error("TP shard {shard} of the engine cannot be served: {source}")]
    Reply {
        /// Which shard.
        shard: u16,
        /// Why.
        source: HandshakeError,
    },
    /// A cache of a kind that we cannot serve.
    #[error("TP shard {shard} of the engine: {source}")]
    Unsupported {
        /// Which shard.
        shard: u16,
        /// Why.
        source: UnsupportedLayout,
    },
    /// Shards of different engines.
    #[error("TP shard {shard} calls itself {found}, shard 0 {expected}")]
    Mixed {
        /// Which shard.
        shard: u16,
        /// Shard 0's engine id.
        expected: EngineId,
        /// This shard's.
        found: EngineId,
    },
}

/// One TP shard of the rank's own engine.
#[derive(Clone, Debug)]
pub(crate) struct EngineShard {
    /// As the side channel told it.
    pub metadata: AgentMetadata,
    /// Its geometry.
    pub layout: Arc<KvLayout>,
}

/// Who the rank's engine is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Its id: another one means a restart.
    pub engine: EngineId,
    /// Its compatibility hash.
    pub hash: String,
    /// Its release; a peer with the same hash is of the same one.
    pub version: &'static Version,
    /// One per TP shard; at least one.
    pub shards: Vec<EngineShard>,
}

impl Identity {
    /// Asks the engine for `(0, tp)` of each configured shard.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub(crate) async fn ask(
        side_channel: &dyn SideChannel,
        endpoint: &Endpoint,
        tp_size: u16,
        version: &'static Version,
    ) -> Result<Self, IdentityError> {
        let requests = (0..tp_size).map(|shard| handshake::request(version, 0, TpRank(shard))).collect();
        let answers = side_channel.ask_all(endpoint, requests, ASK_WITHIN).await;
        let answers = answers.map_err(|source| IdentityError::Ask { source })?;
        let mut known: Option<(EngineId, String)> = None;
        let mut shards = Vec::with_capacity(answers.len());
        for (shard, frames) in (0..).zip(answers) {
            let refuse = |source| IdentityError::Reply { shard, source };
            let reply = handshake::parse_reply(version, &frames).map_err(refuse)?;
            let metadata = AgentMetadata::decode(&reply.payload.agent_metadata).map_err(refuse)?;
            let unsupported = |source| IdentityError::Unsupported { shard, source };
            let layout = Arc::new(metadata.layout().map_err(unsupported)?);
            let found = metadata.engine_id.clone();
            let (expected, _) = known.get_or_insert_with(|| (found.clone(), reply.payload.compatibility_hash));
            if *expected != found {
                return Err(IdentityError::Mixed { shard, expected: expected.clone(), found });
            }
            shards.push(EngineShard { metadata, layout });
        }
        let (engine, hash) = known.unwrap_or_else(|| (EngineId::new(""), String::new()));
        Ok(Self { engine, hash, version, shards })
    }
}

/// Why there is no session, in spite of an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// No arena.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// No agent.
    #[error("start NIXL agent {name}: {source}")]
    Agent {
        /// Its name.
        name: AgentName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A bug: no name can be made for an agent.
    #[error("name a NIXL agent")]
    Name(#[source] nixl::name::AgentNameError),
    /// NIXL, or UCX under it, takes no GPU memory.
    #[error("register staging on a GPU: {source}: {why}")]
    OnGpu {
        /// What is known of the cause, and what to do.
        why: String,
        /// What NIXL says.
        source: FabricError,
    },
    /// A command that an agent did not carry out.
    #[error("{what}: {source}")]
    Fabric {
        /// Which.
        what: &'static str,
        /// Why.
        source: FabricError,
    },
}

impl From<FabricsError> for SessionError {
    fn from(error: FabricsError) -> Self {
        Self::Agent { name: error.name, source: error.source }
    }
}

/// Which worker of which rank an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reader {
    /// Global.
    pub dp_rank: DpRank,
    /// TP shard.
    pub shard: TpRank,
}

/// All ranks' workers by agent name: whose notification is this?
#[derive(Debug, Default)]
pub(crate) struct Directory(Mutex<BTreeMap<AgentName, Reader>>);

impl Directory {
    /// Whose agent it is.
    pub(crate) fn find(&self, agent: &AgentName) -> Option<Reader> {
        self.0.lock().get(agent).cloned()
    }

    /// Puts a rank's workers in the place of those of its former engine.
    fn replace(&self, rank: DpRank, agents: impl IntoIterator<Item = (AgentName, TpRank)>) {
        let mut readers = self.0.lock();
        readers.retain(|_, reader| reader.dp_rank != rank);
        readers.extend(agents.into_iter().map(|(agent, shard)| (agent, Reader { dp_rank: rank, shard })));
    }
}

/// The initiator of one shard; made anew to end a quarantine.
#[derive(Clone, Debug)]
pub(crate) struct Puller {
    /// The agent.
    pub fabric: Arc<dyn Fabric>,
    /// The arena, as registered with it.
    pub region: Region,
    /// Whose turn it is to read: one permit per read, from before its post to its end.
    pub turns: Arc<Semaphore>,
}

impl Puller {
    /// The same with a slow wire, as an injected fault.
    pub(crate) fn slowed(&self, slow: SlowWire) -> Self {
        let plan = FaultPlan::new();
        plan.reads(Some(ReadFault::Delay(slow.delay)));
        Self { fabric: Faulty::wrap(Arc::clone(&self.fabric), plan), ..self.clone() }
    }
}

/// One TP shard of a staging session.
#[derive(Debug)]
pub(crate) struct Shard {
    /// The engine's geometry.
    pub engine: Arc<KvLayout>,
    /// Where the blocks land.
    pub arena: Arena,
    /// Reads from P.
    pub pull: Puller,
    /// D reads from it.
    pub serve: Arc<dyn Fabric>,
    /// Keeps the arena registered with `serve`.
    _served: Region,
}

/// The decode role's session.
#[derive(Debug)]
pub(crate) struct Session {
    /// Whose.
    pub identity: Arc<Identity>,
    /// What D is sent to.
    pub virtual_engine: Arc<VirtualEngine>,
    /// Where the arenas are.
    pub staging: StagingKind,
    /// Slots of each shard's arena.
    pub slots: u32,
    /// One per TP rank.
    pub shards: Vec<Shard>,
    /// D's notifications, per TP shard; taken out by the rank's task.
    pub notifications: Vec<(TpRank, mpsc::Receiver<Notification>)>,
}

/// What building a session needs.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    /// Makes agents.
    pub fabrics: Arc<dyn Fabrics>,
    /// Watches them.
    pub agents: Agents,
    /// Learns D's workers.
    pub directory: Arc<Directory>,
    /// Whose session (global).
    pub rank: DpRank,
    /// Where staging lies.
    pub staging: StagingKind,
    /// On which GPUs.
    pub gpus: OfRank,
    /// Bytes of staging over all shards.
    pub staging_bytes: u64,
}

impl Builder {
    /// Maps the arenas, starts the agents, registers, and learns D's workers.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn build(&self, identity: Arc<Identity>) -> Result<Session, SessionError> {
        let layouts: Vec<_> = identity.shards.iter().map(|shard| Arc::clone(&shard.layout)).collect();
        let slots = staging::slots_in(self.staging_bytes, &layouts)?;
        if self.staging != StagingKind::Vram {
            staging::check_host(self.staging_bytes)?;
        }
        let id = EngineId::new(format!("kvgate-{}_dp{}", uuid::Uuid::new_v4(), self.rank));
        let (mut shards, mut blobs, mut readers, mut notifications) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (shard, engine) in (0..).map(TpRank).zip(&identity.shards) {
            let place = self.place(shard, identity.version, &engine.layout).await?;
            let gpu = place.gpu().cloned();
            let arena = Arena::make(&engine.layout, slots, place).await?;
            arena.touch().await;
            let serve = self.agent(shard, Kind::Serve, gpu).await?;
            let served = self.register(&*serve, &arena.memory).await?;
            blobs.push(carried_out("get the agent's metadata", serve.local_metadata()).await?);
            let worker = engine.metadata.agent_metadata.clone();
            let worker = carried_out("load the engine's agent metadata", serve.load_peer(worker)).await?;
            readers.push((worker, shard));
            notifications.extend(serve.take_notifications().map(|stream| (shard, stream)));
            let pull = self.puller(shard, &arena).await?;
            shards.push(Shard { engine: Arc::clone(&engine.layout), arena, pull, serve, _served: served });
        }
        let advertised = identity.shards.iter().zip(&shards).zip(blobs);
        let advertised: Vec<_> = advertised
            .map(|((engine, shard), agent)| AdvertisedShard {
                template: &engine.metadata,
                layout: &shard.arena.layout,
                agent,
            })
            .collect();
        let virtual_engine = Arc::new(VirtualEngine::new(id, identity.version, &identity.hash, &advertised));
        self.directory.replace(self.rank, readers);
        Ok(Session { identity, virtual_engine, staging: self.staging, slots, shards, notifications })
    }

    /// A fresh initiator over an arena.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn puller(&self, shard: TpRank, arena: &Arena) -> Result<Puller, SessionError> {
        let gpu = arena.memory.on_gpu().map(|memory| memory.gpu().clone());
        let fabric = self.agent(shard, Kind::Pull, gpu).await?;
        let region = self.register(&*fabric, &arena.memory).await?;
        Ok(Puller { fabric, region, turns: Arc::new(Semaphore::new(READS)) })
    }

    /// Where a shard's memory is to be, for an engine with this cache.
    ///
    /// # Errors
    /// When there is no such GPU, or the engine cannot read what is there.
    pub(crate) async fn place(
        &self,
        shard: TpRank,
        version: &'static Version,
        engine: &KvLayout,
    ) -> Result<Place, StagingError> {
        staging::check_engine(self.staging, engine.memory, version)?;
        if !self.staging.needs_gpu() {
            return Ok(Place::Host);
        }
        let ordinal = self.gpus.ordinal(shard, engine.device);
        let gpu = staging::open_gpu(ordinal).await?;
        Ok(if self.staging == StagingKind::Vram { Place::Device(gpu) } else { Place::Pinned(gpu) })
    }

    /// Registers memory with an agent. When that fails for a GPU's, UCX, which the agent has loaded, is asked why.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn register(&self, agent: &dyn Fabric, memory: &Memory) -> Result<Region, SessionError> {
        let registered = carried_out("register staging", agent.register(memory.clone())).await;
        match registered {
            Err(SessionError::Fabric { source, .. }) if memory.on_gpu().is_some() => {
                let fabrics = Arc::clone(&self.fabrics);
                let asking = tokio::task::spawn_blocking(move || fabrics.transport());
                let why = asking.await.ok().flatten().and_then(|transport| transport.no_gpu_memory());
                let why = why.unwrap_or_else(|| "NIXL's own words are on standard error".to_owned());
                Err(SessionError::OnGpu { why, source })
            }
            Err(error) => Err(error),
            Ok(region) => Ok(region),
        }
    }

    /// The prefill role's agent, which sends notifications or reads into memory of `gpu`, and the engine's workers as it knows them.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn teller(&self, identity: &Identity, gpu: Option<Gpu>) -> Result<Teller, SessionError> {
        let fabric = self.agent(TpRank(0), Kind::Pull, gpu).await?;
        let mut workers = Vec::with_capacity(identity.shards.len());
        for shard in &identity.shards {
            let blob = shard.metadata.agent_metadata.clone();
            workers.push(carried_out("load the engine's agent metadata", fabric.load_peer(blob)).await?);
        }
        Ok(Teller { fabric, workers })
    }

    async fn agent(&self, shard: TpRank, kind: Kind, gpu: Option<Gpu>) -> Result<Arc<dyn Fabric>, SessionError> {
        let word = match kind {
            Kind::Pull => "pull",
            Kind::Serve => "serve",
        };
        let name = format!("kvgate-dp{}-tp{shard}-{word}-{}", self.rank, uuid::Uuid::new_v4().simple());
        let name = AgentName::new(name).map_err(SessionError::Name)?;
        let made = match kind {
            Kind::Pull => self.fabrics.pull(name, gpu),
            Kind::Serve => self.fabrics.serve(name, gpu),
        };
        let made = made.await?;
        self.agents.watch(&made);
        Ok(made)
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Pull,
    Serve,
}

/// The prefill role's voice towards its own engine.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    /// The agent.
    pub fabric: Arc<dyn Fabric>,
    /// The engine's workers, by TP rank.
    pub workers: Vec<AgentName>,
}

async fn carried_out<T>(what: &'static str, command: nixl::Pending<T>) -> Result<T, SessionError> {
    let answer = tokio::time::timeout(COMMAND_WITHIN, command).await.unwrap_or(Err(FabricError::Lost));
    answer.map_err(|source| SessionError::Fabric { what, source })
}

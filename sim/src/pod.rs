//! A pod: its DP ranks, their memory, agents, side channels and schedulers, and the HTTP surface over them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener as HttpListener;
use cuda::{CudaError, Gpu};
use kv::ids::{DpRank, EngineId, TpRank};
use nixl::{AgentName, Closed, Fabric, FabricError, Memory, MemoryError};
use side_channel::{Endpoint, ServeError, Server};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::arena::{Arena, Shard};
use crate::engine::{Engine, Pace};
use crate::fault::Fault;
use crate::geometry::Geometry;
use crate::http::{self, Api};
use crate::identity::Identity;
use crate::listener::Listener;
use crate::peers::Peers;
use crate::pins::Pins;
use crate::pool::BlockPool;
use crate::request_log::{RequestLog, RequestLogError};
use crate::scheduler::{Command, Limits, Scheduler};
use crate::seams::{AgentsError, Seams};
use crate::stats::RankStats;
use crate::wall;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodConfig {
    /// Host that decode engines are told, and the port of DP rank 0; port 0: a free one for each rank.
    pub side_channel: Endpoint,
    /// DP ranks in this pod.
    pub ranks: u16,
    /// Number of the first one in the deployment.
    pub first_rank: u16,
    /// The model's name.
    pub model: String,
    /// Sizes of each rank's cache.
    pub geometry: Geometry,
    /// Where the caches are.
    pub memory: CacheMemory,
    /// How fast, with which seed, under which lease.
    pub pace: Pace,
    /// Of each rank's scheduler.
    pub limits: Limits,
    /// Longest prompt and answer together, in tokens.
    pub max_model_len: u64,
    /// Whether prompts share blocks.
    pub prefix_caching: bool,
    /// The vLLM version that it says it is.
    pub vllm_version: String,
    /// Whether the listener dies as vLLM's does.
    pub fragile_listener: bool,
    /// What goes wrong on purpose.
    pub fault: Option<Fault>,
    /// Where requests are logged.
    pub request_log: Option<PathBuf>,
}

/// Where KV caches are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CacheMemory {
    /// In host memory.
    #[default]
    Host,
    /// On GPUs, as this process counts them: one for all, or one for each TP shard of each rank in turn.
    Gpus(Vec<u32>),
}

impl CacheMemory {
    /// The GPU of a shard, counted over all ranks; none: host memory.
    fn gpu(&self, shard: usize) -> Option<u32> {
        match self {
            Self::Host => None,
            Self::Gpus(gpus) => gpus.get(shard).or(gpus.first()).copied(),
        }
    }
}

/// A pod could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An agent could not be made.
    #[error("make the agents of DP rank {rank}")]
    Agents {
        /// Which rank.
        rank: DpRank,
        /// Why.
        #[source]
        source: AgentsError,
    },
    /// No such GPU.
    #[error("open the GPU for the KV cache of DP rank {rank}")]
    Gpu {
        /// Which rank.
        rank: DpRank,
        /// Why.
        #[source]
        source: CudaError,
    },
    /// No memory for a cache.
    #[error("make the KV cache of DP rank {rank} ({bytes} bytes per TP shard; see --num-blocks)")]
    Memory {
        /// Which rank.
        rank: DpRank,
        /// Bytes of one shard.
        bytes: u64,
        /// Why.
        #[source]
        source: MemoryError,
    },
    /// The thread that made it has ended.
    #[error("make a KV cache: the thread that did so has ended")]
    Thread,
    /// NIXL refused the memory or its metadata.
    #[error("register the KV cache of DP rank {rank}")]
    Register {
        /// Which rank.
        rank: DpRank,
        /// Why.
        #[source]
        source: FabricError,
    },
    /// The side channel's port.
    #[error(transparent)]
    SideChannel(#[from] ServeError),
    /// The request log.
    #[error(transparent)]
    RequestLog(#[from] RequestLogError),
    /// A bug: no name can be made for an agent.
    #[error("name an agent of DP rank {rank}")]
    Name {
        /// Which rank.
        rank: DpRank,
        /// Why.
        #[source]
        source: nixl::name::AgentNameError,
    },
}

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    api: Arc<Api>,
    servers: Vec<Server>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Messages that may wait for a rank's scheduler.
const COMMANDS: usize = 1024;

impl Pod {
    /// Starts every rank; the side channels answer when this returns.
    ///
    /// # Errors
    /// [`StartError`]; whatever was started is ended.
    pub async fn start(config: PodConfig, seams: &Seams) -> Result<Self, StartError> {
        let log = config.request_log.as_deref().map(RequestLog::open).transpose()?.unwrap_or_default();
        Self::start_logged(config, seams, log).await
    }

    /// The same, with its requests logged somewhere else than the configuration says.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub async fn start_logged(config: PodConfig, seams: &Seams, log: RequestLog) -> Result<Self, StartError> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let ended_early = stop.clone().drop_guard();
        let base = Uuid::new_v4().to_string();
        let (mut engines, mut servers) = (Vec::new(), Vec::new());
        for local in 0..config.ranks {
            let rank = DpRank(config.first_rank.saturating_add(local));
            let engine = if config.ranks > 1 || config.first_rank > 0 {
                EngineId::new(format!("{base}_dp{rank}"))
            } else {
                EngineId::new(base.as_str())
            };
            let starting = Starting { config: &config, seams, log: &log, tasks: &tasks, stop: &stop };
            let (engine, server) = starting.rank(rank, engine).await?;
            engines.push(engine);
            servers.push(server);
        }
        let api = Api {
            engines,
            model: config.model,
            vllm_version: config.vllm_version,
            max_model_len: config.max_model_len,
            started: wall::unix_seconds(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        ended_early.disarm();
        Ok(Self { api: Arc::new(api), servers, tasks, stop })
    }

    /// The HTTP surface.
    pub fn router(&self) -> Router {
        http::router(Arc::clone(&self.api))
    }

    /// The ranks, by local rank.
    pub fn engines(&self) -> &[Arc<Engine>] {
        &self.api.engines
    }

    /// The side channels' ports, by local rank.
    pub fn side_channel_ports(&self) -> Vec<u16> {
        self.servers.iter().map(|server| server.local_endpoint().port).collect()
    }

    /// Whether a rank's side channel still listens (see `fragile_listener`).
    pub fn is_listening(&self, local: usize) -> bool {
        self.servers.get(local).is_some_and(Server::is_listening)
    }

    /// Serves HTTP until `stop`; running requests are aborted then.
    ///
    /// # Errors
    /// What the listener says.
    pub async fn serve<L>(&self, listener: L, stop: CancellationToken) -> std::io::Result<()>
    where
        L: HttpListener,
        L::Addr: std::fmt::Debug,
    {
        let abort = self.stop.clone();
        let stopped = async move {
            stop.cancelled().await;
            abort.cancel();
        };
        axum::serve(listener, self.router()).with_graceful_shutdown(stopped).await
    }

    /// Ends everything: requests, side channels, agents. True when no agent is stuck.
    pub async fn stop(self, deadline: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "not every task has ended in time");
        }
        for server in self.servers {
            server.stop().await;
        }
        let shards = self.api.engines.iter().flat_map(|engine| engine.arena.shards());
        let closing: Vec<_> = shards.map(|shard| shard.fabric.close(deadline)).collect();
        let mut quiet = true;
        for closed in closing {
            quiet &= !matches!(closed.await, Ok(Closed::Stuck) | Err(_));
        }
        quiet
    }
}

struct Starting<'a> {
    config: &'a PodConfig,
    seams: &'a Seams,
    log: &'a RequestLog,
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
}

impl Starting<'_> {
    async fn rank(&self, rank: DpRank, id: EngineId) -> Result<(Arc<Engine>, Server), StartError> {
        let config = self.config;
        let identity = Arc::new(Identity::new(id.clone(), &config.vllm_version, &config.model, &config.geometry));
        let (shards, payloads) = self.shards(rank, &identity).await?;
        let listener = Listener::new(&identity, payloads, config.fragile_listener);
        let port = match config.side_channel.port {
            0 => 0,
            base => base.saturating_add(rank.0),
        };
        let on = config.side_channel.with_port(port);
        let server = self.seams.side_channel.serve(&on, Arc::new(listener)).await?;
        let arena = Arc::new(Arena::new(config.geometry, shards));
        let stats = Arc::new(RankStats::default());
        let commands = self.scheduler(&arena, &stats);
        let side_channel = Arc::clone(&self.seams.side_channel);
        let engine = Engine {
            rank,
            id,
            endpoint: server.local_endpoint().clone(),
            peers: Arc::new(Peers::new(side_channel, identity, Arc::clone(&arena))),
            arena,
            stats,
            commands,
            pace: config.pace.clone(),
            compute: Mutex::new(()),
            overwrite_pinned: config.fault.and_then(|fault| fault.overwrites(rank)),
            log: self.log.clone(),
            tasks: self.tasks.clone(),
        };
        Ok((Arc::new(engine), server))
    }

    /// Makes the agents and registers their memory.
    async fn shards(
        &self,
        rank: DpRank,
        identity: &Identity,
    ) -> Result<(Vec<Shard>, BTreeMap<TpRank, vllm_wire::handshake::Payload>), StartError> {
        let geometry = &self.config.geometry;
        let failed = |source| StartError::Register { rank, source };
        let (mut shards, mut payloads) = (Vec::new(), BTreeMap::new());
        for tp in (0..geometry.tensor_parallel).map(TpRank) {
            let (gpu, memory) = self.memory(rank, tp).await?;
            let fabric = self.agent(rank, gpu).await?;
            let region = fabric.register(memory).await.map_err(failed)?;
            let metadata = fabric.local_metadata().await.map_err(failed)?;
            payloads.insert(tp, identity.payload(geometry, region.memory(), &metadata));
            shards.push(Shard { fabric, region });
        }
        Ok((shards, payloads))
    }

    /// A shard's memory, and the GPU that it is on.
    async fn memory(&self, rank: DpRank, tp: TpRank) -> Result<(Option<Gpu>, Memory), StartError> {
        let (config, geometry) = (self.config, self.config.geometry);
        let local = usize::from(rank.0.saturating_sub(config.first_rank));
        let shard = local.saturating_mul(usize::from(geometry.tensor_parallel)).saturating_add(usize::from(tp.0));
        let bytes = geometry.arena_bytes();
        let no_memory = |source| StartError::Memory { rank, bytes, source };
        let Some(ordinal) = config.memory.gpu(shard) else {
            return Ok((None, Arena::memory(&geometry, None).map_err(no_memory)?));
        };
        // The driver takes its time.
        let making = tokio::task::spawn_blocking(move || {
            let gpu = Gpu::open(ordinal).map_err(|source| StartError::Gpu { rank, source })?;
            let memory = Arena::memory(&geometry, Some(&gpu));
            let no_memory = |source| StartError::Memory { rank, bytes, source };
            Ok((Some(gpu), memory.map_err(no_memory)?))
        });
        making.await.map_err(|_ended| StartError::Thread)?
    }

    async fn agent(&self, rank: DpRank, gpu: Option<Gpu>) -> Result<Arc<dyn Fabric>, StartError> {
        let name = AgentName::new(Uuid::new_v4().to_string());
        let name = name.map_err(|source| StartError::Name { rank, source })?;
        self.seams.agents.agent(name, gpu).await.map_err(|source| StartError::Agents { rank, source })
    }

    /// Starts the scheduler and what brings it the agents' notifications.
    fn scheduler(&self, arena: &Arc<Arena>, stats: &Arc<RankStats>) -> mpsc::Sender<Command> {
        let config = self.config;
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let pool = BlockPool::new(config.geometry.num_blocks, config.prefix_caching);
        let pins = Pins::new(config.pace.kv_lease, config.geometry.tensor_parallel);
        let scheduler = Scheduler::new(pool, pins, config.limits, Arc::clone(stats), Arc::clone(arena));
        self.tasks.spawn(scheduler.run(inbox, self.stop.clone()));
        for (shard, memory) in arena.ranked() {
            let Some(mut heard) = memory.fabric.take_notifications() else { continue };
            let (commands, stop) = (commands.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                loop {
                    let notification = tokio::select! {
                        () = stop.cancelled() => return,
                        notification = heard.recv() => notification,
                    };
                    let Some(notification) = notification else { return };
                    let command = Command::Notified { shard, message: notification.message };
                    if commands.send(command).await.is_err() {
                        return;
                    }
                }
            });
        }
        commands
    }
}

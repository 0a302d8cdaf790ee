//! The engines that a decode rank reads from: one handshake per engine id, checked as vLLM checks it, then cached.
//!
//! Source: `docs/vllm-nixl-protocol.md` §1.3, §1.5, §1.7, §9.3. As in vLLM one handshake runs at a time, so a dead peer
//! delays the handshakes behind it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv::ids::{EngineId, EngineRequestId, TpRank};
use kv::layout::{KvLayout, LayoutMismatch, MemoryKind};
use nixl::{AgentName, Fabric, FabricError, MemKind, PeerMemory};
use side_channel::{AskError, Endpoint, SideChannel};
use tokio::sync::Mutex;
use vllm_wire::handshake::{self, AgentMetadata, HandshakeError, UnsupportedLayout};
use vllm_wire::notif;

use crate::arena::Arena;
use crate::identity::Identity;

/// How long one TP rank of a peer may take to answer (vLLM's receive timeout).
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Where a request's KV comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The engine that has it.
    pub engine: EngineId,
    /// Its side channel.
    pub endpoint: Endpoint,
    /// Its TP size.
    pub tp_size: u16,
}

/// A peer whose metadata is loaded.
#[derive(Debug)]
pub struct Peer {
    /// Who it is.
    pub remote: Remote,
    /// Its TP shards in order; ours read from the one of the same rank.
    pub shards: Vec<PeerShard>,
}

/// One TP shard of a peer.
#[derive(Debug)]
pub struct PeerShard {
    /// Its agent.
    pub agent: AgentName,
    /// What it lets us read.
    pub memory: PeerMemory,
    /// Where its blocks lie.
    pub layout: KvLayout,
}

/// Why a peer cannot be read from.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It is this very engine.
    #[error("engine {0} cannot read from itself")]
    Own(EngineId),
    /// Another number of TP shards.
    #[error("engine {engine} has {theirs} TP shards, this one {ours}: they must be equal")]
    TpSize {
        /// The peer.
        engine: EngineId,
        /// Ours.
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
    /// No answer.
    #[error("ask engine {engine} for its agent metadata")]
    Ask {
        /// The peer.
        engine: EngineId,
        /// Why.
        #[source]
        source: AskError,
    },
    /// An answer that is none of vLLM's.
    #[error("read the agent metadata of engine {engine}")]
    Metadata {
        /// The peer.
        engine: EngineId,
        /// Why.
        #[source]
        source: HandshakeError,
    },
    /// A cache that we cannot read.
    #[error("understand the cache of engine {engine}")]
    Unsupported {
        /// The peer.
        engine: EngineId,
        /// Why.
        #[source]
        source: UnsupportedLayout,
    },
    /// Another model, version or cache type.
    #[error("engine {engine} has compatibility hash {theirs}, this one {ours}")]
    Hash {
        /// The peer.
        engine: EngineId,
        /// Ours.
        ours: String,
        /// Theirs.
        theirs: String,
    },
    /// The port belongs to another engine by now.
    #[error("{endpoint} is the side channel of engine {found}, not of {expected}")]
    Changed {
        /// Who was asked.
        endpoint: Endpoint,
        /// Whom the request names.
        expected: EngineId,
        /// Who answered.
        found: EngineId,
    },
    /// Blocks that do not mean the same.
    #[error("the cache of engine {engine} does not fit")]
    Layout {
        /// The peer.
        engine: EngineId,
        /// Why.
        #[source]
        source: LayoutMismatch,
    },
    /// NIXL refused its metadata or a message to it.
    #[error("reach the agent of engine {engine}")]
    Fabric {
        /// The peer.
        engine: EngineId,
        /// Why.
        #[source]
        source: FabricError,
    },
}

/// The known peers of one rank.
#[derive(Debug)]
pub struct Peers {
    side_channel: Arc<dyn SideChannel>,
    identity: Arc<Identity>,
    arena: Arc<Arena>,
    known: Mutex<BTreeMap<EngineId, Arc<Peer>>>,
}

impl Peers {
    /// No peer is known yet.
    pub fn new(side_channel: Arc<dyn SideChannel>, identity: Arc<Identity>, arena: Arc<Arena>) -> Self {
        Self { side_channel, identity, arena, known: Mutex::new(BTreeMap::new()) }
    }

    /// The peer, after a handshake when it is not known yet.
    ///
    /// # Errors
    /// [`PeerError`]; the next call tries again.
    pub async fn get(&self, remote: &Remote) -> Result<Arc<Peer>, PeerError> {
        let mut known = self.known.lock().await;
        if let Some(peer) = known.get(&remote.engine) {
            return Ok(Arc::clone(peer));
        }
        let peer = Arc::new(self.shake_hands(remote).await?);
        let replaced: Vec<EngineId> = known
            .iter()
            .filter(|(_, old)| old.remote.endpoint == remote.endpoint && Arc::strong_count(old) == 1)
            .map(|(engine, _)| engine.clone())
            .collect();
        for engine in replaced {
            if let Some(old) = known.remove(&engine) {
                self.unload(&old).await;
            }
        }
        known.insert(remote.engine.clone(), Arc::clone(&peer));
        Ok(peer)
    }

    /// Drops what is known of a peer after a failed transfer, so that the next request shakes hands anew.
    pub async fn forget(&self, engine: &EngineId) {
        let mut known = self.known.lock().await;
        if let Some(peer) = known.remove(engine) {
            self.unload(&peer).await;
        }
    }

    /// Tells every TP shard of the peer the same thing.
    ///
    /// # Errors
    /// The first shard that cannot be told.
    pub async fn notify(&self, peer: &Peer, message: &Bytes) -> Result<(), PeerError> {
        for (shard, ours) in peer.shards.iter().zip(self.arena.shards()) {
            let told = ours.fabric.notify(shard.agent.clone(), message.clone()).await;
            told.map_err(|source| PeerError::Fabric { engine: peer.remote.engine.clone(), source })?;
        }
        Ok(())
    }

    /// Says that this side will not read a request's blocks, without having read them.
    ///
    /// # Errors
    /// When the peer cannot be reached.
    pub async fn done_without_reading(&self, remote: &Remote, request: &EngineRequestId) -> Result<(), PeerError> {
        let peer = self.get(remote).await?;
        self.notify(&peer, &done_message(request)).await
    }

    async fn shake_hands(&self, remote: &Remote) -> Result<Peer, PeerError> {
        let engine = &remote.engine;
        let ours = self.arena.geometry().tensor_parallel;
        if *engine == self.identity.engine {
            return Err(PeerError::Own(engine.clone()));
        }
        if remote.tp_size != ours {
            return Err(PeerError::TpSize { engine: engine.clone(), ours, theirs: remote.tp_size });
        }
        let requests: Vec<Bytes> =
            (0..ours).map(|tp| handshake::request(self.identity.version, 0, TpRank(tp))).collect();
        let deadline = ANSWER_WITHIN * u32::from(ours);
        let answers = self.side_channel.ask_all(&remote.endpoint, requests, deadline).await;
        let answers = answers.map_err(|source| PeerError::Ask { engine: engine.clone(), source })?;
        let mut shards = Vec::with_capacity(answers.len());
        for (frames, shard) in answers.iter().zip(self.arena.shards()) {
            shards.push(self.load(remote, frames, shard.fabric.as_ref()).await?);
        }
        Ok(Peer { remote: remote.clone(), shards })
    }

    /// Checks one shard's answer in vLLM's order (hash, metadata, engine id, geometry) and loads it.
    async fn load(&self, remote: &Remote, frames: &[Bytes], fabric: &dyn Fabric) -> Result<PeerShard, PeerError> {
        let engine = &remote.engine;
        let bad = |source| PeerError::Metadata { engine: engine.clone(), source };
        let reply = handshake::parse_reply(self.identity.version, frames).map_err(bad)?;
        if reply.payload.compatibility_hash != self.identity.hash {
            let (ours, theirs) = (self.identity.hash.clone(), reply.payload.compatibility_hash);
            return Err(PeerError::Hash { engine: engine.clone(), ours, theirs });
        }
        let metadata = AgentMetadata::decode(&reply.payload.agent_metadata).map_err(bad)?;
        if metadata.engine_id != *engine {
            let (endpoint, found) = (remote.endpoint.clone(), metadata.engine_id);
            return Err(PeerError::Changed { endpoint, expected: engine.clone(), found });
        }
        let layout = metadata.layout();
        let layout = layout.map_err(|source| PeerError::Unsupported { engine: engine.clone(), source })?;
        let fits = self.identity.layout.compatible_with(&layout);
        fits.map_err(|source| PeerError::Layout { engine: engine.clone(), source })?;
        let agent = fabric.load_peer(metadata.agent_metadata).await;
        let agent = agent.map_err(|source| PeerError::Fabric { engine: engine.clone(), source })?;
        let ranges = layout.regions.iter().filter_map(|region| Some(region.base..region.end()?)).collect();
        let kind = match layout.memory {
            MemoryKind::Dram => MemKind::Dram,
            MemoryKind::Vram => MemKind::Vram,
        };
        Ok(PeerShard { agent, memory: PeerMemory { kind, device: layout.device, ranges }, layout })
    }

    async fn unload(&self, peer: &Peer) {
        for (shard, ours) in peer.shards.iter().zip(self.arena.shards()) {
            if let Err(error) = ours.fabric.forget_peer(shard.agent.clone()).await {
                tracing::debug!(engine_id = %peer.remote.engine, %error, "a peer's metadata could not be dropped");
            }
        }
    }
}

/// What a single reader tells each shard when it has read a request's blocks.
pub fn done_message(request: &EngineRequestId) -> Bytes {
    notif::done(request, 1)
}

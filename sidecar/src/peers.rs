//! The remote engines that a rank reads from: each is asked once, whoever else needs it meanwhile waits for the same answer.
//!
//! A peer belongs to the generation of pull agents that loaded it: when those are made anew, all peers are forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv::ids::{EngineId, TpRank, TransferId};
use kv::layout::{KvLayout, MemoryKind};
use nixl::{AgentName, Fabric, MemKind, PeerMemory};
use side_channel::{Endpoint, SideChannel};
use tokio::time::Instant;
use vllm_wire::handshake::{self, AgentMetadata};
use vllm_wire::versions::Version;

use crate::model::{HandshakeRefusal, TransferError};
use crate::peer_allow::{PeerAllow, PeerError};

/// vLLM gives each rank 5 s.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// Loading a blob makes no connection; it takes microseconds.
const LOAD_WITHIN: Duration = Duration::from_secs(10);
/// Stale metadata goes when the last read that uses it has ended.
const FORGET_WITHIN: Duration = Duration::from_secs(2);
/// The most peers that are kept; the longest unused go first.
const KEEP: usize = 512;

/// One TP shard of a remote engine.
#[derive(Debug)]
pub(crate) struct PeerShard {
    /// Its agent, as loaded into `pull`.
    pub agent: AgentName,
    /// Our pull agent of the same shard: what talks to it.
    pub pull: Arc<dyn Fabric>,
    /// Where its blocks lie.
    pub layout: KvLayout,
    /// What it advertised.
    pub memory: PeerMemory,
}

/// A remote engine that can be read from.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The generation of pull agents that loaded it.
    pub generation: u64,
    /// One per TP rank, in order.
    pub shards: Vec<PeerShard>,
}

impl Peer {
    /// Logical blocks that every shard has.
    pub(crate) fn blocks(&self) -> u32 {
        self.shards.iter().map(|shard| shard.layout.logical_blocks()).min().unwrap_or(0)
    }

    /// Its workers, each with the agent that talks to it.
    pub(crate) fn lines(&self) -> Vec<(Arc<dyn Fabric>, AgentName)> {
        self.shards.iter().map(|shard| (Arc::clone(&shard.pull), shard.agent.clone())).collect()
    }
}

#[derive(Debug)]
enum Entry {
    Asking { waiting: Vec<TransferId> },
    Known { peer: Arc<Peer>, used: Instant },
}

/// What is to be done for one who needs a peer.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// It is known.
    Known(Arc<Peer>),
    /// Somebody has asked already: wait.
    Wait,
    /// Ask, then [`Peers::answered`]; what was known of it before shall be dropped first, as reads from it failed.
    Ask(Option<Arc<Peer>>),
}

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    entries: BTreeMap<EngineId, Entry>,
    /// Still loaded in the agents, but not to be used: their connections may be broken.
    stale: BTreeMap<EngineId, Arc<Peer>>,
}

impl Peers {
    /// Finds a peer, or puts the transfer in line for it.
    pub(crate) fn look_up(&mut self, engine: &EngineId, transfer: &TransferId, now: Instant) -> Lookup {
        match self.entries.get_mut(engine) {
            Some(Entry::Known { peer, used }) => {
                *used = now;
                Lookup::Known(Arc::clone(peer))
            }
            Some(Entry::Asking { waiting }) => {
                waiting.push(transfer.clone());
                Lookup::Wait
            }
            None => {
                let waiting = vec![transfer.clone()];
                self.entries.insert(engine.clone(), Entry::Asking { waiting });
                Lookup::Ask(self.stale.remove(engine))
            }
        }
    }

    /// Takes the answer in (a failure is not remembered) and returns who waited for it.
    pub(crate) fn answered(&mut self, engine: &EngineId, peer: Option<Arc<Peer>>, now: Instant) -> Vec<TransferId> {
        let waiting = match self.entries.remove(engine) {
            Some(Entry::Asking { waiting }) => waiting,
            Some(Entry::Known { .. }) | None => Vec::new(),
        };
        if let Some(peer) = peer {
            self.entries.insert(engine.clone(), Entry::Known { peer, used: now });
        }
        waiting
    }

    /// Puts a peer aside whose reads fail, so that the next transfer asks who is there now. False when it was not known.
    pub(crate) fn distrust(&mut self, engine: &EngineId) -> bool {
        let Some(peer) = self.remove(engine) else { return false };
        self.stale.insert(engine.clone(), peer);
        if self.stale.len() > KEEP {
            // Its metadata stays loaded until the agents are made anew: a few KiB.
            self.stale.pop_first();
        }
        true
    }

    fn remove(&mut self, engine: &EngineId) -> Option<Arc<Peer>> {
        match self.entries.get(engine) {
            Some(Entry::Known { .. }) => match self.entries.remove(engine) {
                Some(Entry::Known { peer, .. }) => Some(peer),
                Some(Entry::Asking { .. }) | None => None,
            },
            Some(Entry::Asking { .. }) | None => None,
        }
    }

    /// Drops the longest unused peer when there are too many.
    pub(crate) fn evict(&mut self) -> Option<Arc<Peer>> {
        if self.entries.len() <= KEEP {
            return None;
        }
        let used = |(engine, entry): (&EngineId, &Entry)| match entry {
            Entry::Known { used, .. } => Some((*used, engine.clone())),
            Entry::Asking { .. } => None,
        };
        let (_, oldest) = self.entries.iter().filter_map(used).min()?;
        self.remove(&oldest)
    }

    /// Forgets all of them: the agents that loaded them are gone.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.stale.clear();
    }
}

/// For which pull agents a question is asked: the answer is of no use to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The session, by its virtual engine's id.
    pub session: EngineId,
    /// The generation of pull agents in it.
    pub generation: u64,
}

/// What a handshake needs.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// The transport.
    pub side_channel: Arc<dyn SideChannel>,
    /// P's side channel, as the request has it.
    pub endpoint: Endpoint,
    /// Whom this sidecar may connect to.
    pub allow: PeerAllow,
    /// Who must be there.
    pub engine: EngineId,
    /// What was known of it, if reads from it failed.
    pub stale: Option<Arc<Peer>>,
    /// Whose agents `pull` are.
    pub asked: Asked,
    /// D's hash.
    pub hash: String,
    /// D's release. P must be of the same one, as the hash contains it, so it is asked in the same way.
    pub version: &'static Version,
    /// D's layout, per TP shard.
    pub layouts: Vec<Arc<KvLayout>>,
    /// The pull agents, per TP shard.
    pub pull: Vec<Arc<dyn Fabric>>,
}

impl Handshake {
    /// Asks P for each of its shards, checks that D could read its blocks, and loads its agents.
    ///
    /// # Errors
    /// [`TransferError`] for a peer that does not answer, is another one, or does not fit.
    pub(crate) async fn run(self) -> Result<Peer, TransferError> {
        let shards = 0..u16::try_from(self.layouts.len()).unwrap_or(u16::MAX);
        let requests = shards.map(|shard| handshake::request(self.version, 0, TpRank(shard))).collect();
        let unreachable =
            |source| TransferError::PeerUnreachable { endpoint: self.endpoint.clone(), source: Arc::new(source) };
        let at = self.address().await?;
        let answers = self.side_channel.ask_all(&at, requests, ASK_WITHIN).await.map_err(unreachable)?;
        self.forget_stale().await;
        let mut peers = Vec::with_capacity(answers.len());
        for ((shard, frames), (layout, pull)) in (0..).zip(answers).zip(self.layouts.iter().zip(&self.pull)) {
            let (theirs, metadata) = self.check(shard, &frames, layout)?;
            let not_loaded =
                |source| TransferError::PeerNotLoaded { endpoint: self.endpoint.clone(), source: Arc::new(source) };
            let lost = Err(nixl::FabricError::Lost);
            let loading = tokio::time::timeout(LOAD_WITHIN, pull.load_peer(metadata));
            let agent = loading.await.unwrap_or(lost).map_err(not_loaded)?;
            let memory = advertised(&theirs);
            peers.push(PeerShard { agent, pull: Arc::clone(pull), layout: theirs, memory });
        }
        Ok(Peer { generation: self.asked.generation, shards: peers })
    }

    /// Where to connect to, if that may be. The very address that was checked: a name could mean another one a moment later.
    async fn address(&self) -> Result<Endpoint, TransferError> {
        let unknown = |source| TransferError::PeerUnknown { endpoint: self.endpoint.clone(), source: Arc::new(source) };
        let late = || unknown(std::io::ErrorKind::TimedOut.into());
        let resolved = tokio::time::timeout(ASK_WITHIN, self.allow.resolve(&self.endpoint)).await;
        match resolved.map_err(|_late| late())? {
            Ok(at) => Ok(at),
            Err(PeerError::NotAllowed(refused)) => Err(TransferError::PeerNotAllowed(refused)),
            Err(PeerError::Unknown { source, .. }) => Err(unknown(source)),
        }
    }

    /// A connection is made when metadata is loaded, so what is broken must go before it is loaded again.
    async fn forget_stale(&self) {
        let Some(stale) = &self.stale else { return };
        for (pull, agent) in stale.lines() {
            let forgetting = tokio::time::timeout(FORGET_WITHIN, pull.forget_peer(agent));
            match forgetting.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(peer = %self.engine, %error, "stale metadata not dropped"),
                Err(_late) => tracing::debug!(peer = %self.engine, "stale metadata is still used by a read"),
            }
        }
    }

    fn check(&self, shard: u16, frames: &[Bytes], ours: &KvLayout) -> Result<(KvLayout, Bytes), TransferError> {
        let unusable = |source| TransferError::VersionUnsupported {
            peer: self.engine.clone(),
            refusal: HandshakeRefusal::Reply { shard, source: Arc::new(source) },
        };
        let mismatch = |refusal| TransferError::LayoutMismatch { peer: self.engine.clone(), refusal };
        let payload = handshake::parse_reply(self.version, frames).map_err(unusable)?.payload;
        if payload.compatibility_hash != self.hash {
            let (theirs, ours) = (payload.compatibility_hash, self.hash.clone());
            return Err(mismatch(HandshakeRefusal::Hash { theirs, ours }));
        }
        let metadata = AgentMetadata::decode(&payload.agent_metadata).map_err(unusable)?;
        if metadata.engine_id != self.engine {
            return Err(TransferError::PeerChanged {
                endpoint: self.endpoint.clone(),
                expected: self.engine.clone(),
                found: metadata.engine_id,
            });
        }
        let unsupported = |unsupported| TransferError::VersionUnsupported {
            peer: self.engine.clone(),
            refusal: HandshakeRefusal::Unsupported { shard, unsupported },
        };
        let theirs = metadata.layout().map_err(unsupported)?;
        let differs = |source| mismatch(HandshakeRefusal::Layout { shard, mismatch: source });
        ours.compatible_with(&theirs).map_err(differs)?;
        Ok((theirs, metadata.agent_metadata))
    }
}

/// The memory that a layout spans, as NIXL wants it named.
pub(crate) fn advertised(layout: &KvLayout) -> PeerMemory {
    let kind = match layout.memory {
        MemoryKind::Dram => MemKind::Dram,
        MemoryKind::Vram => MemKind::Vram,
    };
    let range = |region: &kv::layout::RegionLayout| region.base..region.end().unwrap_or(region.base);
    PeerMemory { kind, device: layout.device, ranges: layout.regions.iter().map(range).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> (EngineId, TransferId) {
        (EngineId::new("p"), TransferId::new(text))
    }

    #[test]
    fn one_asks_the_others_wait_and_a_failure_is_not_remembered() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let (engine, first) = id("1");
        let (_, second) = id("2");
        assert!(matches!(peers.look_up(&engine, &first, now), Lookup::Ask(None)));
        assert!(matches!(peers.look_up(&engine, &second, now), Lookup::Wait));
        assert_eq!(peers.answered(&engine, None, now), [first.clone(), second.clone()]);
        assert!(matches!(peers.look_up(&engine, &second, now), Lookup::Ask(None)));
        let peer = Arc::new(Peer { generation: 0, shards: vec![] });
        assert_eq!(peers.answered(&engine, Some(peer), now), [second]);
        assert!(matches!(peers.look_up(&engine, &first, now), Lookup::Known(_)));
        assert!(peers.distrust(&engine));
        assert!(matches!(peers.look_up(&engine, &first, now), Lookup::Ask(Some(_))));
        assert!(!peers.distrust(&engine), "an open question is not forgotten: others wait for it");
    }
}

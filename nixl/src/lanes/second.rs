//! The second agent: when it is started, and what it knows.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, Weak},
    thread,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::StartSecond;
use crate::{
    fabric::{Closed, Fabric, FabricStats},
    memory::Memory,
    name::AgentName,
    pending::Pending,
    region::{Region, Registration},
};

/// One memory as both agents know it.
pub(super) struct Parts {
    pub(super) main: Region,
    pub(super) second: OnceLock<Region>,
}

/// What a region of [`super::Lanes`] holds: both registrations end with it.
pub(super) struct Registered(pub(super) Arc<Parts>);

impl Registration for Registered {
    fn parts(&self) -> Option<(&Region, Option<&Region>)> {
        Some((&self.0.main, self.0.second.get()))
    }
}

/// So many large reads in a row show that no thread copies; the first one may have waited for its connection.
const CERTAIN: u8 = 3;

/// How a large read is done.
pub(super) enum Way {
    /// In one part.
    Whole,
    /// In one part, which shows who copies the bytes.
    ToLearn,
    /// In pieces, with this agent.
    Cut(Arc<dyn Fabric>),
}

/// A peer that the first agent has loaded.
struct Known {
    blob: Bytes,
    /// Its bytes are copied by the thread that posts the read, as the last large one has shown.
    copies: bool,
    /// Large reads in a row that something else has moved.
    moved: u8,
    /// The second agent has been given the blob.
    given: bool,
}

enum Phase {
    /// No read so far would have been faster in two parts.
    Unneeded,
    Starting,
    Running(Arc<dyn Fabric>),
    /// It could not be started: reads go on in one part.
    Failed,
    Closed(Option<Arc<dyn Fabric>>),
}

struct State {
    phase: Phase,
    memories: Vec<Weak<Parts>>,
    peers: BTreeMap<AgentName, Known>,
}

pub(super) struct Second {
    start: StartSecond,
    state: Mutex<State>,
}

impl Second {
    pub(super) fn new(start: StartSecond) -> Arc<Self> {
        let state = State { phase: Phase::Unneeded, memories: Vec::new(), peers: BTreeMap::new() };
        Arc::new(Self { start, state: Mutex::new(state) })
    }

    /// The first agent has registered this.
    pub(super) async fn registered(&self, main: Region) -> Arc<Parts> {
        let memory = main.memory().clone();
        let parts = Arc::new(Parts { main, second: OnceLock::new() });
        let registering = self.remember(&parts, memory);
        if let Some(registering) = registering
            && let Ok(region) = registering.await
        {
            parts.second.set(region).unwrap_or_default();
        }
        parts
    }

    fn remember(&self, parts: &Arc<Parts>, memory: Memory) -> Option<Pending<Region>> {
        let mut state = self.state.lock();
        state.memories.retain(|known| known.strong_count() > 0);
        state.memories.push(Arc::downgrade(parts));
        state.running().map(|agent| agent.register(memory))
    }

    /// The first agent has loaded this.
    pub(super) fn loaded(&self, peer: &AgentName, blob: Bytes) {
        self.state.lock().peers.insert(peer.clone(), Known { blob, copies: false, moved: 0, given: false });
    }

    /// The second agent's answer, if it knows the peer.
    pub(super) fn forget(&self, peer: &AgentName) -> Option<Pending<()>> {
        let mut state = self.state.lock();
        let given = state.peers.remove(peer).is_some_and(|known| known.given);
        state.running().filter(|_| given).map(|agent| agent.forget_peer(peer.clone()))
    }

    /// How to do a large read from this peer. The second agent is given the peer's blob before it is given a read.
    pub(super) fn way(&self, peer: &AgentName) -> Way {
        let mut state = self.state.lock();
        let agent = state.running().map(Arc::clone);
        let Some(known) = state.peers.get_mut(peer) else { return Way::Whole };
        match (known.copies, agent) {
            (false, _) if known.moved >= CERTAIN => Way::Whole,
            (false, _) | (true, None) => Way::ToLearn,
            (true, Some(agent)) => {
                if !known.given {
                    known.given = true;
                    // Commands are carried out in order: should this one fail, the read is refused too, and goes to the first agent.
                    drop(agent.load_peer(known.blob.clone()));
                }
                Way::Cut(agent)
            }
        }
    }

    /// It has refused a read, so it may not know the peer after all.
    pub(super) fn refused(&self, peer: &AgentName) {
        if let Some(known) = self.state.lock().peers.get_mut(peer) {
            known.given = false;
        }
    }

    /// Whether a large read's bytes from this peer were copied by the thread that posted it. If so, there is use for a second one.
    pub(super) fn learn(self: &Arc<Self>, peer: &AgentName, copies: bool) {
        let mut state = self.state.lock();
        if let Some(known) = state.peers.get_mut(peer) {
            known.copies = copies;
            known.moved = if copies { 0 } else { known.moved.saturating_add(1) };
        }
        if !copies || !matches!(state.phase, Phase::Unneeded) {
            return;
        }
        state.phase = Phase::Starting;
        drop(state);
        let this = Arc::clone(self);
        let started = thread::Builder::new().name("nixl-second".to_owned()).spawn(move || this.come_up());
        if started.is_err() {
            self.state.lock().phase = Phase::Failed;
        }
    }

    /// On a thread of its own: NIXL takes its time.
    fn come_up(&self) {
        let made = (self.start)();
        let mut state = self.state.lock();
        let agent = match (made, &state.phase) {
            (Some(agent), Phase::Starting) => agent,
            (made, phase) => {
                if matches!(phase, Phase::Starting) {
                    state.phase = Phase::Failed;
                }
                drop(state);
                // It knows no memory, so nobody needs to wait for its end.
                drop(made.map(|agent| agent.close(Duration::ZERO)));
                return;
            }
        };
        let memories: Vec<_> = state.memories.iter().filter_map(Weak::upgrade).collect();
        let registering: Vec<_> = memories.iter().map(|parts| agent.register(parts.main.memory().clone())).collect();
        state.phase = Phase::Running(agent);
        drop(state);
        for (parts, registering) in memories.into_iter().zip(registering) {
            if let Ok(region) = registering.wait() {
                parts.second.set(region).unwrap_or_default();
            }
        }
    }

    pub(super) fn stats(&self) -> Option<FabricStats> {
        let state = self.state.lock();
        match &state.phase {
            Phase::Running(agent) | Phase::Closed(Some(agent)) => Some(agent.stats()),
            Phase::Unneeded | Phase::Starting | Phase::Failed | Phase::Closed(None) => None,
        }
    }

    /// Ends it, if there is one; none is started from now on.
    pub(super) fn close(&self, deadline: Duration) -> Option<Pending<Closed>> {
        let mut state = self.state.lock();
        let agent = match std::mem::replace(&mut state.phase, Phase::Closed(None)) {
            Phase::Running(agent) | Phase::Closed(Some(agent)) => agent,
            Phase::Unneeded | Phase::Starting | Phase::Failed | Phase::Closed(None) => return None,
        };
        let closing = agent.close(deadline);
        state.phase = Phase::Closed(Some(agent));
        Some(closing)
    }
}

impl State {
    fn running(&self) -> Option<&Arc<dyn Fabric>> {
        match &self.phase {
            Phase::Running(agent) => Some(agent),
            Phase::Unneeded | Phase::Starting | Phase::Failed | Phase::Closed(_) => None,
        }
    }
}

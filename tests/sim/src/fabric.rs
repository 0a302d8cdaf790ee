//! A NIXL of the simulation: bytes take time, come in pieces, and what goes wrong goes wrong as hardware does.
//!
//! A read is copied piece by piece while its time passes. It may be refused, break off after a piece, or never end; the rest of
//! one that has failed may still land later, until its agent has been destroyed. Who writes where is kept on record: a second
//! read into bytes that an earlier one may still write to breaks invariant M, whatever becomes of the text.

mod agent;
mod fate;
mod writes;

use std::collections::BTreeMap;
use std::sync::Arc;

use nixl::loopback::LoopbackNet;
use nixl::{AgentName, Fabric};
use parking_lot::Mutex;

use crate::dice::Dice;
use crate::evidence::Evidence;
use crate::hosts::{Host, Links};
pub use fate::Weather;
use writes::Writes;

/// The fabric of one simulation. Clones are the same one.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    net: LoopbackNet,
    links: Links,
    evidence: Evidence,
    state: Mutex<State>,
}

struct State {
    dice: Dice,
    hosts: BTreeMap<AgentName, Host>,
    weather: BTreeMap<Host, Weather>,
    writes: Writes,
}

impl World {
    /// A fabric without agents, in fair weather.
    pub fn new(seed: u64, links: Links, evidence: Evidence) -> Self {
        let state = State {
            dice: Dice::new(seed, "fabric"),
            hosts: BTreeMap::new(),
            weather: BTreeMap::new(),
            writes: Writes::default(),
        };
        Self(Arc::new(Inner { net: LoopbackNet::new(), links, evidence, state: Mutex::new(state) }))
    }

    /// How it goes for what a host reads and sends, from now on.
    pub fn weather(&self, host: Host, weather: Weather) {
        self.0.state.lock().weather.insert(host, weather);
    }

    /// A process has died, and all its memory with it.
    pub fn died(&self, host: Host) {
        self.0.state.lock().writes.forget(host);
        self.0.evidence.died(host);
    }

    /// Agents for a host's process.
    pub fn agents(&self, host: Host) -> Agents {
        Agents { world: self.clone(), host }
    }

    fn host_of(&self, agent: &AgentName) -> Option<Host> {
        self.0.state.lock().hosts.get(agent).copied()
    }

    fn is_cut(&self, from: Host, to: Host) -> bool {
        self.0.links.is_cut(from, to)
    }
}

/// Makes the agents of one process.
#[derive(Clone)]
pub struct Agents {
    world: World,
    host: Host,
}

impl Agents {
    fn make(&self, name: &AgentName) -> Arc<dyn Fabric> {
        self.world.0.state.lock().hosts.insert(name.clone(), self.host);
        agent::Agent::make(self.world.clone(), self.host, self.world.0.net.agent(name.clone()))
    }
}

impl sidecar::fabrics::Fabrics for Agents {
    fn pull(&self, name: AgentName, _: Option<cuda::Gpu>) -> sidecar::fabrics::MadeAgent {
        let agent = self.make(&name);
        Box::pin(async { Ok(agent) })
    }

    fn serve(&self, name: AgentName, _: Option<cuda::Gpu>) -> sidecar::fabrics::MadeAgent {
        self.pull(name, None)
    }
}

impl sim::seams::Agents for Agents {
    fn agent(&self, name: AgentName, _: Option<cuda::Gpu>) -> sim::seams::MadeAgent {
        let agent = self.make(&name);
        Box::pin(async { Ok(agent) })
    }
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").field("host", &self.host).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

//! What a pod is given from outside, so that tests run it in one process: its agents and its side channel.

use std::fmt::Debug;
use std::sync::Arc;

use cuda::Gpu;
use futures_util::future::BoxFuture;
use nixl::loopback::LoopbackNet;
use nixl::{AgentName, Fabric};
use side_channel::SideChannel;

/// The ways out of a pod.
#[derive(Clone, Debug)]
pub struct Seams {
    /// Makes NIXL agents.
    pub agents: Arc<dyn Agents>,
    /// Asks and answers side-channel questions.
    pub side_channel: Arc<dyn SideChannel>,
}

/// Makes agents.
pub trait Agents: Debug + Send + Sync + 'static {
    /// A new agent that both serves and reads. `gpu`: where its memory is, if it is a GPU's.
    ///
    /// # Errors
    /// When it cannot be started.
    fn agent(&self, name: AgentName, gpu: Option<Gpu>) -> MadeAgent;
}

/// An agent to come: loading plug-ins takes its time.
pub type MadeAgent = BoxFuture<'static, Result<Arc<dyn Fabric>, AgentsError>>;

/// An agent could not be made.
#[derive(Debug, thiserror::Error)]
#[error("start NIXL agent {name}")]
pub struct AgentsError {
    /// Its name.
    pub name: AgentName,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Agents of one in-process network.
#[derive(Clone)]
pub struct LoopbackAgents(LoopbackNet);

impl LoopbackAgents {
    /// Agents that reach one another through `net`.
    pub fn new(net: LoopbackNet) -> Self {
        Self(net)
    }
}

impl Debug for LoopbackAgents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoopbackAgents")
    }
}

impl Agents for LoopbackAgents {
    fn agent(&self, name: AgentName, _: Option<Gpu>) -> MadeAgent {
        let agent: Arc<dyn Fabric> = self.0.agent(name);
        Box::pin(async { Ok(agent) })
    }
}

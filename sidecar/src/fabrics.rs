//! Where a pod's NIXL agents come from: the real library, or the loopback network in tests.

use std::fmt::Debug;
use std::sync::Arc;

use nixl::{Agent, AgentConfig, AgentName, Fabric};

use crate::transport::Transport;

/// Makes agents. Called on a blocking thread: loading plug-ins takes its time.
pub trait Fabrics: Debug + Send + Sync + 'static {
    /// An initiator: reads from peers, has no progress thread, can be recycled.
    ///
    /// # Errors
    /// [`FabricsError`] when NIXL refuses.
    fn pull(&self, name: AgentName) -> Result<Arc<dyn Fabric>, FabricsError>;

    /// A passive agent: others read from it, it notices their notifications.
    ///
    /// # Errors
    /// [`FabricsError`] when NIXL refuses.
    fn serve(&self, name: AgentName) -> Result<Arc<dyn Fabric>, FabricsError>;

    /// What bytes are moved by, as far as that can be known. Called on a blocking thread. None where nothing is known (yet).
    fn transport(&self) -> Option<Transport> {
        None
    }
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
#[error("start NIXL agent {name}")]
pub struct FabricsError {
    /// Its name.
    pub name: AgentName,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Agents of the real library, each with a thread of its own.
#[derive(Clone, Copy, Debug)]
pub struct NixlFabrics {
    api: &'static nixl_sys::Api,
}

impl NixlFabrics {
    /// Agents of this library.
    pub fn new(api: &'static nixl_sys::Api) -> Self {
        Self { api }
    }

    fn start(&self, config: AgentConfig) -> Result<Arc<dyn Fabric>, FabricsError> {
        let name = config.name.clone();
        match Agent::start(self.api, config) {
            Ok(agent) => Ok(agent),
            Err(source) => Err(FabricsError { name, source: Box::new(source) }),
        }
    }
}

impl Fabrics for NixlFabrics {
    fn pull(&self, name: AgentName) -> Result<Arc<dyn Fabric>, FabricsError> {
        self.start(AgentConfig::pull(name))
    }

    fn serve(&self, name: AgentName) -> Result<Arc<dyn Fabric>, FabricsError> {
        self.start(AgentConfig::serve(name))
    }

    fn transport(&self) -> Option<Transport> {
        Transport::ask()
    }
}

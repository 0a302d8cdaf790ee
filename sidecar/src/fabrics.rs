//! Where a pod's NIXL agents come from: the real library, or the loopback network in tests.

use std::fmt::Debug;
use std::sync::Arc;

use cuda::Gpu;
use futures_util::future::BoxFuture;
use nixl::{Agent, AgentConfig, AgentError, AgentName, Cores, Fabric, Lanes};

use crate::transport::Transport;

/// Makes agents.
pub trait Fabrics: Debug + Send + Sync + 'static {
    /// An initiator: reads from peers, has no progress thread, can be recycled. `gpu`: where its memory is, if it is a GPU's.
    ///
    /// # Errors
    /// [`FabricsError`] when NIXL refuses.
    fn pull(&self, name: AgentName, gpu: Option<Gpu>) -> MadeAgent;

    /// A passive agent: others read from it, it notices their notifications. `gpu`: as for [`pull`](Self::pull).
    ///
    /// # Errors
    /// [`FabricsError`] when NIXL refuses.
    fn serve(&self, name: AgentName, gpu: Option<Gpu>) -> MadeAgent;

    /// What bytes are moved by, as far as that can be known. Called on a blocking thread. None where nothing is known (yet).
    fn transport(&self) -> Option<Transport> {
        None
    }
}

/// An agent to come: loading plug-ins takes its time.
pub type MadeAgent = BoxFuture<'static, Result<Arc<dyn Fabric>, FabricsError>>;

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

/// Agents of the real library, each with a thread of its own. Initiators are given a second one where that makes reads faster ([`Lanes`]).
#[derive(Clone, Debug)]
pub struct NixlFabrics {
    api: &'static nixl_sys::Api,
    cores: Arc<Cores>,
}

impl NixlFabrics {
    /// Agents of this library.
    pub fn new(api: &'static nixl_sys::Api) -> Self {
        Self { api, cores: Cores::of_this_process() }
    }

    fn start(
        &self,
        config: AgentConfig,
        start: impl FnOnce(AgentConfig) -> Result<Arc<dyn Fabric>, AgentError> + Send + 'static,
    ) -> MadeAgent {
        let name = config.name.clone();
        let starting = tokio::task::spawn_blocking(move || start(config));
        Box::pin(async move {
            match starting.await {
                Ok(Ok(agent)) => Ok(agent),
                Ok(Err(source)) => Err(FabricsError { name, source: Box::new(source) }),
                Err(ended) => Err(FabricsError { name, source: Box::new(ended) }),
            }
        })
    }
}

impl Fabrics for NixlFabrics {
    fn pull(&self, name: AgentName, gpu: Option<Gpu>) -> MadeAgent {
        let (api, cores) = (self.api, Arc::clone(&self.cores));
        let config = AgentConfig { gpu, ..AgentConfig::pull(name) };
        self.start(config, move |config| Ok(Lanes::start(api, config, cores)?))
    }

    fn serve(&self, name: AgentName, gpu: Option<Gpu>) -> MadeAgent {
        let api = self.api;
        let config = AgentConfig { gpu, ..AgentConfig::serve(name) };
        self.start(config, move |config| Ok(Agent::start(api, config)?))
    }

    fn transport(&self) -> Option<Transport> {
        Transport::ask()
    }
}

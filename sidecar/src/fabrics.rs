//! Where a pod's NIXL agents come from: the real library, or the loopback network in tests.

use std::fmt::Debug;
use std::sync::Arc;

use nixl::{AgentName, Fabric};

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

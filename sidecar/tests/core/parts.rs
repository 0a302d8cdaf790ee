//! What a world is made of: the engine's pages, and agents over loopback.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::StatusCode;
use nixl::faulty::{FaultPlan, Faulty};
use nixl::loopback::LoopbackNet;
use nixl::{AgentName, Fabric};
use parking_lot::Mutex;
use sidecar::engine_http::{EngineHttp, GetError, Page};
use sidecar::fabrics::{Fabrics, MadeAgent};

/// The engine's pages, as a test wants them.
#[derive(Debug)]
pub(crate) struct Pages(Mutex<(bool, &'static str, u32)>);

impl Default for Pages {
    fn default() -> Self {
        Self(Mutex::new((true, "0.32.0", 1)))
    }
}

impl Pages {
    pub(crate) fn healthy(&self, healthy: bool) {
        self.0.lock().0 = healthy;
    }

    /// Another process start.
    pub(crate) fn restarted(&self) {
        self.0.lock().2 += 1;
    }

    pub(crate) fn version(&self, version: &'static str) {
        self.0.lock().1 = version;
    }
}

impl EngineHttp for Pages {
    fn get<'a>(&'a self, path: &'static str, _: Duration) -> BoxFuture<'a, Result<Page, GetError>> {
        let (healthy, version, starts) = *self.0.lock();
        let body = match path {
            "/version" => format!("{{\"version\":\"{version}\"}}"),
            "/metrics" => format!(
                "process_start_time_seconds {starts}\nvllm:num_requests_running{{engine=\"0\",model_name=\"m\"}} 3\n"
            ),
            _ => String::new(),
        };
        let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Box::pin(async move { Ok(Page { status, body: body.into() }) })
    }
}

/// Loopback agents; what the sidecar's initiators do goes by a plan of faults.
pub(crate) struct LoopbackFabrics {
    pub(crate) net: LoopbackNet,
    pub(crate) plan: FaultPlan,
}

impl std::fmt::Debug for LoopbackFabrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoopbackFabrics")
    }
}

impl Fabrics for LoopbackFabrics {
    fn pull(&self, name: AgentName, _: Option<cuda::Gpu>) -> MadeAgent {
        let agent: Arc<dyn Fabric> = Faulty::wrap(self.net.agent(name), self.plan.clone());
        Box::pin(async { Ok(agent) })
    }

    fn serve(&self, name: AgentName, _: Option<cuda::Gpu>) -> MadeAgent {
        let agent: Arc<dyn Fabric> = self.net.agent(name);
        Box::pin(async { Ok(agent) })
    }
}

//! `kvgate sim`: a pod over real NIXL and real sockets.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use cuda::Gpu;
use nixl::{Agent, AgentConfig, AgentName, Fabric};
use nixl_sys::{Api, LoadError};
use serde_json::json;
use side_channel::Zmq;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{Args, ConfigError};
use crate::pod::{Pod, StartError};
use crate::request_log::RequestLogError;
use crate::seams::{Agents, AgentsError, MadeAgent, Seams};

/// How long an ending pod waits for its requests, and then for its transfers.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Why the engine did not run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The command line.
    #[error("read the configuration")]
    Config(#[from] ConfigError),
    /// NIXL is not there.
    #[error("load NIXL")]
    Nixl(#[from] LoadError),
    /// The address is taken or not ours.
    #[error("listen for HTTP on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pod did not start.
    #[error("start the engine")]
    Start(#[from] StartError),
    /// The ports file could not be written.
    #[error("write the ports file {path}")]
    PortsFile {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The HTTP server failed.
    #[error("serve HTTP")]
    Serve(#[source] io::Error),
    /// A thread that loaded NIXL died.
    #[error("load NIXL: its thread died")]
    Died,
}

impl RunError {
    /// 64 for what the command line can mend, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::PortsFile { .. } => 64,
            Self::Start(StartError::RequestLog(RequestLogError { .. }) | StartError::Gpu { .. }) => 64,
            Self::Nixl(_) | Self::Listen { .. } | Self::Start(_) | Self::Serve(_) | Self::Died => 1,
        }
    }
}

/// Runs a pod until `stop`.
///
/// # Errors
/// [`RunError`].
pub async fn run(args: Args, stop: CancellationToken) -> Result<(), RunError> {
    let config = args.pod()?;
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener.map_err(|source| RunError::Listen { address: args.listen, source })?;
    let http_port = listener.local_addr().map_err(RunError::Serve)?.port();
    let library = args.nixl_library.clone();
    let loaded = tokio::task::spawn_blocking(move || Api::load(library.as_deref())).await;
    let api = loaded.map_err(|_| RunError::Died)??;
    let agents = Arc::new(NixlAgents { api, params: args.ucx_param.clone() });
    let seams = Seams { agents, side_channel: Arc::new(Zmq::default()) };
    let (ranks, model, token_bytes) = (config.ranks, config.model.clone(), config.geometry.token_bytes());
    let pod = Pod::start(config, &seams).await?;
    let side_channel = pod.side_channel_ports();
    if let Some(path) = &args.ports_file {
        let written = write_ports(path, http_port, &side_channel);
        written.map_err(|source| RunError::PortsFile { path: path.clone(), source })?;
    }
    tracing::info!(role = ?args.role, http_port, ?side_channel, ranks, model, token_bytes, "the engine is ready");
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "small packets of a connection may be delayed");
        }
    });
    let serving = pod.serve(listener, stop.clone());
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_WITHIN).await;
    };
    let served = tokio::select! {
        served = serving => served.map_err(RunError::Serve),
        () = late => Ok(()),
    };
    if !pod.stop(STOP_WITHIN).await {
        tracing::warn!("an agent could not be destroyed");
    }
    served
}

/// Written beside and renamed: whoever sees the file sees all of it.
fn write_ports(path: &Path, http: u16, side_channel: &[u16]) -> io::Result<()> {
    let unfinished = path.with_extension("tmp");
    std::fs::write(&unfinished, json!({"http": http, "side_channel": side_channel}).to_string())?;
    std::fs::rename(&unfinished, path)
}

/// Real agents.
#[derive(Debug)]
pub struct NixlAgents {
    api: &'static Api,
    params: Vec<(String, String)>,
}

impl NixlAgents {
    /// Agents of this library, with these parameters for its UCX back end.
    pub fn new(api: &'static Api, params: Vec<(String, String)>) -> Self {
        Self { api, params }
    }
}

impl Agents for NixlAgents {
    fn agent(&self, name: AgentName, gpu: Option<Gpu>) -> MadeAgent {
        let config = AgentConfig { backend_params: self.params.clone(), gpu, ..AgentConfig::serve(name.clone()) };
        let api = self.api;
        let starting = tokio::task::spawn_blocking(move || Agent::start(api, config));
        Box::pin(async move {
            match starting.await {
                Ok(Ok(agent)) => Ok(agent as Arc<dyn Fabric>),
                Ok(Err(source)) => Err(AgentsError { name, source: Box::new(source) }),
                Err(ended) => Err(AgentsError { name, source: Box::new(ended) }),
            }
        })
    }
}

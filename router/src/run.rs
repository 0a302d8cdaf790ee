//! One router process from its command line to its end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::serve::ListenerExt as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::config::{Args, ConfigError, Gate};
use crate::router::{Parts, Router};
use crate::upstream::Pooled;

/// Why the process ends before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The command line cannot be run.
    #[error("check the command line")]
    Config(#[from] ConfigError),
    /// The address cannot be bound.
    #[error("listen on {host}:{port} (--host, --port)")]
    Listen {
        /// The host, as given.
        host: String,
        /// The port.
        port: u16,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The ports file cannot be written.
    #[error("write the ports file {}", path.display())]
    PortsFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The listener failed.
    #[error("serve")]
    Serve(#[source] io::Error),
}

impl RunError {
    /// 64 when the command line has to be changed, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 64,
            Self::Listen { .. } | Self::PortsFile { .. } | Self::Serve(_) => 1,
        }
    }
}

/// Runs the router until `stop`, then drains it.
///
/// # Errors
/// [`RunError`] when it cannot start; its [`exit_code`](RunError::exit_code) is the process's.
pub async fn run(args: Args, git_sha: &'static str, stop: CancellationToken) -> Result<(), RunError> {
    let config = args.check()?;
    if config.failure.faults.any() {
        warn!(faults = ?config.failure.faults, "fault injection is on");
    }
    if let Some(sidecar) = config.shared_sidecar() {
        warn!(%sidecar, "one sidecar stands for several pods, whose states will be mixed up: name each pod's with URL,sidecar=URL");
    }
    let crate::config::listen::Listen { host, port, ports_file, .. } = config.listen.clone();
    let listen = |source| RunError::Listen { host: host.clone(), port, source };
    let listener = TcpListener::bind((host.as_str(), port)).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    info!(
        prefill = config.targets.prefill.len(),
        decode = config.targets.decode.len(),
        prefill_ranks = config.targets.prefill_ranks,
        decode_ranks = config.targets.decode_ranks,
        gate = if matches!(config.choice.gate, Gate::Stage) { "stage" } else { "direct" },
        pairing = ?config.choice.pairing,
        token = config.targets.sidecar_authorization.is_some(),
        "starting"
    );
    // Events must not wait for an acknowledgement of the ones before.
    let listener = listener.tap_io(|socket| {
        if let Err(refused) = socket.set_nodelay(true) {
            debug!(error = &refused as &dyn std::error::Error, "TCP_NODELAY was refused");
        }
    });
    let id_prefix = Uuid::new_v4().simple().to_string();
    let parts = Parts { upstream: Arc::new(Pooled::tcp(config.deadlines.connect)), git_sha, id_prefix };
    let router = Router::start(config, parts);
    if let Some(path) = &ports_file {
        write_ports(path, address.port()).map_err(|source| RunError::PortsFile { path: path.clone(), source })?;
    }
    info!(http = %address, "listening");
    let ended = router.serve(listener, stop).await.map_err(RunError::Serve)?;
    info!(ended = ?ended, "ended");
    Ok(())
}

/// Whoever waits for the file sees it whole: it is written aside and renamed.
fn write_ports(path: &Path, http: u16) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    std::fs::write(&aside, json!({ "http": http, "side_channel": [] }).to_string())?;
    std::fs::rename(&aside, path)
}

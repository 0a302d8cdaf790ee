//! One router process from its command line to its end.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::serve::{Listener, ListenerExt as _};
use serde_json::json;
use telemetry::Observed;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::config::listen::Listen;
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
    #[error("listen on {host}:{port} (--host and --port, or --admin-host and --admin-port)")]
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
}

impl RunError {
    /// 64 when the command line has to be changed, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 64,
            Self::Listen { .. } | Self::PortsFile { .. } => 1,
        }
    }
}

/// Runs the router until `stop`, then drains it.
///
/// # Errors
/// [`RunError`] when it cannot start; its [`exit_code`](RunError::exit_code) is the process's.
pub async fn run(
    args: Args,
    git_sha: &'static str,
    observed: impl Into<Observed>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let config = args.check()?;
    if config.failure.faults.any() {
        warn!(faults = ?config.failure.faults, "fault injection is on");
    }
    if let Some(sidecar) = config.shared_sidecar() {
        warn!(%sidecar, "one sidecar stands for several pods, whose states will be mixed up: name each pod's with URL,sidecar=URL");
    }
    if config.limits.keys.is_none() && !config.listen.is_loopback() && !config.listen.is_mutual() {
        warn!(
            host = config.listen.host,
            "whoever reaches the port may use the engines: see --api-keys-file and --tls-client-ca"
        );
    }
    let Listen { host, port, ports_file, admin_host, admin_port, .. } = config.listen.clone();
    let (listener, address) = bind(&host, port).await?;
    let operators = match admin_port {
        Some(port) => Some(bind(&admin_host, port).await?),
        None => None,
    };
    info!(
        prefill = config.targets.prefill.len(),
        decode = config.targets.decode.len(),
        prefill_ranks = config.targets.prefill_ranks,
        decode_ranks = config.targets.decode_ranks,
        gate = if matches!(config.choice.gate, Gate::Stage) { "stage" } else { "direct" },
        pairing = ?config.choice.pairing,
        token = config.targets.sidecar_tokens.is_some(),
        tls = config.listen.tls.is_some(),
        mutual_tls = config.listen.is_mutual(),
        "starting"
    );
    let id_prefix = Uuid::new_v4().simple().to_string();
    let parts = Parts {
        upstream: Arc::new(Pooled::tcp(config.deadlines.connect, config.targets.upstream.clone())),
        git_sha,
        id_prefix,
        observed: observed.into(),
    };
    let router = Router::start(config, parts);
    let admin = operators.map(|(listener, address)| {
        info!(http = %address, "operators are served");
        router.serve_operators(listener);
        address.port()
    });
    if let Some(path) = &ports_file {
        write_ports(path, address.port(), admin)
            .map_err(|source| RunError::PortsFile { path: path.clone(), source })?;
    }
    info!(http = %address, "listening");
    let ended = router.serve(listener, stop).await;
    info!(ended = ?ended, "ended");
    Ok(())
}

async fn bind(host: &str, port: u16) -> Result<(impl Listener<Addr = SocketAddr>, SocketAddr), RunError> {
    let failed = |source| RunError::Listen { host: host.to_owned(), port, source };
    let listener = TcpListener::bind((host.trim_matches(['[', ']']), port)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    // Events must not wait for an acknowledgement of the ones before.
    let listener = listener.tap_io(|socket| {
        if let Err(refused) = socket.set_nodelay(true) {
            debug!(error = &refused as &dyn std::error::Error, "TCP_NODELAY was refused");
        }
    });
    Ok((listener, address))
}

/// Whoever waits for the file sees it whole: it is written aside and renamed.
fn write_ports(path: &Path, http: u16, admin: Option<u16>) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    std::fs::write(&aside, json!({ "http": http, "admin": admin, "side_channel": [] }).to_string())?;
    std::fs::rename(&aside, path)
}

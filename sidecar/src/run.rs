//! One sidecar process from its command line to its end.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::serve::{Listener, ListenerExt as _};
use nixl_sys::LoadError;
use secrets::follow;
use serde::Serialize;
use serving::Port;
use side_channel::Zmq;
use telemetry::Observed;
use telemetry::log_filter::LogFilter;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::config::{Args, ConfigError, Settings};
use crate::engine_http::TcpEngine;
use crate::fabrics::NixlFabrics;
use crate::faults;
use crate::gpus::GpuError;
use crate::http::{Api, HttpSources, serve, terms};
use crate::lifecycle::{Budgets, Lifecycle};
use crate::metrics::Build;
use crate::model::{NoReceiptSink, ReceiptSink, ShutDown, StartError};
use crate::pod::{Parts, Pod};
use crate::receipt_log::ReceiptLog;

/// The C library's file name, for `--nixl-library FOLDER`.
const NIXL_LIBRARY: &str = "libnixl_capi.so";

/// Why the process ends before it was told to.
#[derive(Debug, Error)]
pub enum RunError {
    /// The command line cannot be run.
    #[error("check the command line")]
    Config(#[from] ConfigError),
    /// The receipt log cannot be opened.
    #[error("open the receipt log {path}")]
    ReceiptLog {
        /// The file, as given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The API's address cannot be bound.
    #[error("listen on {address} for the HTTP API (--listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No NIXL, or not a usable one.
    #[error("load the NIXL library")]
    Nixl(#[source] LoadError),
    /// Loading NIXL ended without an answer.
    #[error("load the NIXL library without an end of its thread")]
    NixlThread,
    /// The pod cannot start.
    #[error("start the pod")]
    Start(#[from] StartError),
    /// The ports file cannot be written.
    #[error("write the ports file {path}")]
    PortsFile {
        /// The file, as given.
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
            Self::Config(_) | Self::Start(StartError::Config(_) | StartError::Gpu(GpuError::Cuda { .. })) => 64,
            Self::ReceiptLog { .. }
            | Self::Listen { .. }
            | Self::Nixl(_)
            | Self::NixlThread
            | Self::Start(
                StartError::Gpu(GpuError::TooLittle { .. } | GpuError::Thread)
                | StartError::HostMemory { .. }
                | StartError::Listen { .. },
            )
            | Self::PortsFile { .. } => 1,
        }
    }
}

/// Runs the sidecar until `stop`, then drains it.
///
/// # Errors
/// [`RunError`] when it cannot start; its [`exit_code`](RunError::exit_code) is the process's.
pub async fn run(
    args: Args,
    git_sha: &'static str,
    observed: impl Into<Observed>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let Observed { log_filter, spans } = observed.into();
    let settings = args.settings()?;
    faults::announce(&settings.faults);
    info!(
        role = settings.pod.role.as_str(),
        engine = %settings.pod.engine,
        engine_side_channel = %settings.pod.engine_side_channel,
        dp_size = settings.pod.dp_size,
        tp_size = settings.pod.tp_size,
        rank_offset = settings.pod.rank_offset,
        staging = settings.pod.staging.as_str(),
        staging_bytes = settings.pod.staging_bytes,
        token = settings.token.is_some(),
        tls = settings.tls.is_some(),
        mutual_tls = settings.tls.as_ref().is_some_and(|tls| tls.is_mutual()),
        "starting"
    );
    let receipts = open_receipts(settings.receipt_log.as_deref())?;
    let listener = bind(settings.listen).await?;
    let nixl = load_nixl(settings.nixl_library.clone()).await?;
    let origin = nixl.origin();
    info!(path = %origin.path.display(), version = origin.version, "NIXL loaded");
    let build = Build {
        nixl_path: origin.path.display().to_string(),
        nixl_version: origin.version.clone(),
        nixl_mock: origin.mock,
        ..this_build(git_sha)
    };
    let parts = Parts {
        fabrics: Arc::new(NixlFabrics::new(nixl)),
        engine: Arc::new(TcpEngine::new(settings.pod.engine.clone(), settings.upstream.clone())),
        side_channel: Arc::new(Zmq::new()),
        receipts,
        spans,
        sources: Arc::new(HttpSources::new(
            settings.token.clone(),
            settings.upstream.clone(),
            settings.pod.peers.clone(),
        )),
    };
    run_parts(settings, listener, parts, (build, log_filter), Budgets::default(), stop).await.map(drop)
}

/// Runs a pod made of any parts behind an open listener: what [`run`] does once NIXL is loaded.
///
/// # Errors
/// As [`run`].
pub async fn run_parts(
    settings: Settings,
    listener: impl Listener<Addr = SocketAddr>,
    parts: Parts,
    (build, log_filter): (Build, LogFilter),
    budgets: Budgets,
    stop: CancellationToken,
) -> Result<ShutDown, RunError> {
    let lifecycle = Lifecycle::default();
    let address = listener.local_addr().map_err(|source| RunError::Listen { address: settings.listen, source })?;
    let pod = Pod::start(settings.pod, parts, lifecycle.tasks(), lifecycle.core().clone()).await?;
    let (tasks, stop_files) = (lifecycle.tasks(), lifecycle.stop());
    drop(settings.token.clone().map(|tokens| tasks.spawn(follow(tokens, stop_files.clone()))));
    drop(settings.tls.clone().map(|tls| tasks.spawn(follow(tls, stop_files.clone()))));
    drop(settings.upstream.map(|tls| tasks.spawn(follow(tls, stop_files.clone()))));
    let api = Api::new(pod.clone(), settings.token, build, log_filter, &lifecycle);
    let port = Port { listener, tls: settings.tls };
    let server = lifecycle.tasks().spawn(serve(port, api, terms(settings.max_connections)));

    let ports = Ports { http: address.port(), side_channel: pod.side_channel_ports() };
    info!(http = %address, side_channel = ?ports.side_channel, "listening");
    let written = settings.ports_file.as_deref().map_or(Ok(()), |path| write_ports(path, &ports));

    if written.is_ok() {
        tokio::select! {
            () = stop.cancelled() => {}
            ended = server => error!(?ended, "the HTTP server ended by itself"),
        }
    }
    let outcome = lifecycle.shut_down(&pod, budgets).await;
    written.map(|()| outcome)
}

/// This crate's part of the build's description; the commit is stamped by whoever builds the binary.
pub fn this_build(git_sha: &'static str) -> Build {
    Build { version: env!("CARGO_PKG_VERSION"), git_sha, ..Build::default() }
}

/// Binds the API's address.
///
/// # Errors
/// [`RunError::Listen`], for example when the port is taken.
pub async fn bind(address: SocketAddr) -> Result<impl Listener<Addr = SocketAddr>, RunError> {
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
    // Small answers and events must not wait for an acknowledgement of the ones before.
    Ok(listener.tap_io(|socket| {
        if let Err(refused) = socket.set_nodelay(true) {
            debug!(error = %refused, "TCP_NODELAY was refused");
        }
    }))
}

fn open_receipts(path: Option<&Path>) -> Result<Arc<dyn ReceiptSink>, RunError> {
    match path {
        None => Ok(Arc::new(NoReceiptSink)),
        Some(path) => ReceiptLog::open(path)
            .map(|log| Arc::new(log) as Arc<dyn ReceiptSink>)
            .map_err(|source| RunError::ReceiptLog { path: path.to_owned(), source }),
    }
}

/// Loading runs constructors and reads plugins: not on an async thread.
async fn load_nixl(configured: Option<PathBuf>) -> Result<&'static nixl_sys::Api, RunError> {
    let loading = tokio::task::spawn_blocking(move || {
        let file = configured.map(|path| if path.is_dir() { path.join(NIXL_LIBRARY) } else { path });
        nixl_sys::Api::load(file.as_deref())
    });
    loading.await.map_err(|_| RunError::NixlThread)?.map_err(RunError::Nixl)
}

#[derive(Debug, Serialize)]
struct Ports {
    http: u16,
    side_channel: Vec<u16>,
}

/// Whoever waits for the file sees it whole or not at all.
fn write_ports(path: &Path, ports: &Ports) -> Result<(), RunError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = serde_json::to_vec(ports)
        .map_err(io::Error::from)
        .and_then(|json| std::fs::write(&beside, json))
        .and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|source| RunError::PortsFile { path: path.to_owned(), source })
}

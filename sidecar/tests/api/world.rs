//! A P engine, a D engine, and sidecars beside them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::serve::Listener as _;
use clap::Parser as _;
use nixl::loopback::LoopbackNet;
use serde_json::{Value, json};
use side_channel::{InProcess, SideChannel};
use sidecar::config::Args;
use sidecar::http::HttpSources;
use sidecar::lifecycle::Budgets;
use sidecar::model::{NoReceiptSink, ShutDown};
use sidecar::pod::Parts;
use sidecar::run::{RunError, bind, run_parts};
use sim::seams::{LoopbackAgents, Seams};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::http::Client;
use crate::rig::{self, Loopback, RouterEngine, json_request};

/// The usual engine: small blocks.
pub(crate) const SHAPE: &str = "--head-size 8";

/// The token of sidecars that ask for one.
pub(crate) const TOKEN: &str = "open-sesame";

#[derive(Debug, clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

pub(crate) struct World {
    net: LoopbackNet,
    side_channel: Arc<dyn SideChannel>,
    folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { net: LoopbackNet::new(), side_channel: Arc::new(InProcess::new()), folder: tempfile::tempdir().unwrap() }
    }

    /// `flags` name the rest of its shape, as in `--head-size 8`.
    pub(crate) async fn engine(&self, flags: &str) -> sim::pod::Pod {
        let agents = Arc::new(LoopbackAgents::new(self.net.clone()));
        let seams = Seams { agents, side_channel: Arc::clone(&self.side_channel) };
        let least = "sim --layers 2 --kv-heads 4 --block-size 4 --num-blocks 129 --side-channel 127.0.0.1:0";
        let args = sim::config::Args::try_parse_from(least.split_whitespace().chain(flags.split_whitespace())).unwrap();
        sim::pod::Pod::start(args.pod().unwrap(), &seams).await.unwrap()
    }

    /// A sidecar beside an engine, from its command line on.
    pub(crate) async fn sidecar(&self, role: &str, engine: &sim::pod::Pod, flags: &str) -> Sidecar {
        let side_channel = format!("127.0.0.1:{}", engine.side_channel_ports()[0]);
        self.start(role, engine.router(), &side_channel, flags).await
    }

    /// A sidecar beside nothing.
    pub(crate) async fn lonely(&self, role: &str, flags: &str) -> Sidecar {
        self.start(role, Router::new(), "127.0.0.1:1", flags).await
    }

    async fn start(&self, role: &str, engine: Router, side_channel: &str, flags: &str) -> Sidecar {
        let ports = self.folder.path().join(format!("{}.json", uuid::Uuid::new_v4()));
        let token = flags.contains("--token-file").then_some(TOKEN);
        let least = format!(
            "sidecar --role {role} --engine http://127.0.0.1:1 --engine-side-channel {side_channel} --listen 127.0.0.1:0 \
             --side-channel-listen 127.0.0.1:0 --ports-file {}",
            ports.display()
        );
        let staging = if flags.contains("--staging-bytes") { "" } else { "--staging-bytes 1MiB" };
        let flags = format!("{staging} {flags}");
        let args = Cli::try_parse_from(least.split_whitespace().chain(flags.split_whitespace())).unwrap().args;
        let settings = args.settings().unwrap();
        let parts = Parts {
            fabrics: Arc::new(Loopback(self.net.clone())),
            engine: Arc::new(RouterEngine(engine)),
            side_channel: Arc::clone(&self.side_channel),
            receipts: Arc::new(NoReceiptSink),
            spans: telemetry::trace::Spans::default(),
            sources: Arc::new(HttpSources::new(
                settings.token.clone(),
                settings.upstream.clone(),
                settings.pod.peers.clone(),
            )),
        };
        let stop = CancellationToken::new();
        let listener = bind(settings.listen).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let budgets = Budgets { drain: Duration::from_secs(3), ..Budgets::default() };
        let build = (rig::build(), rig::log_filter());
        #[expect(clippy::disallowed_methods, reason = "a process of its own, as far as the test goes")]
        let process = tokio::spawn(run_parts(settings, listener, parts, build, budgets, stop.clone()));
        Sidecar { client: Client::new(port, token).await, port, stop, process: Some(process) }
    }

    /// A file with the token, for `--token-file`.
    pub(crate) fn token_file(&self) -> PathBuf {
        let path = self.folder.path().join("token");
        std::fs::write(&path, TOKEN).unwrap();
        path
    }
}

/// One process.
pub(crate) struct Sidecar {
    pub(crate) client: Client,
    port: u16,
    pub(crate) stop: CancellationToken,
    process: Option<JoinHandle<Result<ShutDown, RunError>>>,
}

impl Sidecar {
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn ready(self) -> Self {
        self.client.until("/readyz", |answer| answer.status == 200).await;
        self
    }

    /// Ends it and says how that went.
    pub(crate) async fn end(mut self) -> ShutDown {
        self.stop.cancel();
        self.process.take().unwrap().await.unwrap().unwrap()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Prefills on an engine and returns what it answers.
pub(crate) async fn prefill(engine: &sim::pod::Pod, first: u32) -> Value {
    let body = json!({"prompt": prompt(first), "max_tokens": 1, "kv_transfer_params": {
        "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null, "remote_block_ids": null,
        "remote_host": null, "remote_port": null}});
    complete(engine, body).await["kv_transfer_params"].clone()
}

pub(crate) fn prompt(first: u32) -> Value {
    json!((0..30).map(|token| first + token).collect::<Vec<_>>())
}

pub(crate) async fn complete(engine: &sim::pod::Pod, body: Value) -> Value {
    let answer = engine.router().oneshot(json_request("/v1/completions", body.to_string())).await.unwrap();
    let status = answer.status();
    let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
    serde_json::from_slice(&bytes).unwrap()
}

pub(crate) fn start(attempt: &str, params: &Value) -> Value {
    json!({
        "attempt_id": attempt, "request_id": "label", "dp_rank": 0, "kv_transfer_params": params,
        "deadline_ms": 20_000, "lease_ms": 30_000, "prefill_done_age_ms": 0,
    })
}

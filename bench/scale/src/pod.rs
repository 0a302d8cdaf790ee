//! The sidecar's process: `sidecar::run::run_parts` on parts in memory, and a port at which whoever loads it says what D has collected.

use std::io::stderr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::serve::Listener as _;
use bench_router::connection::Connection;
use clap::Parser;
use nixl::loopback::LoopbackNet;
use serde_json::json;
use side_channel::InProcess;
use sidecar::config::RoleArg;
use sidecar::digest::source::NoSources;
use sidecar::lifecycle::Budgets;
use sidecar::model::NoReceiptSink;
use sidecar::pod::Parts;
use sidecar::run::{bind, run_parts, this_build};
use telemetry::log_filter::LogFilter;
use telemetry::trace::Spans;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engines::{Engine, HOST, Loopback, Pages, SLOT_BYTES};
use crate::{complain, say, until_told};

/// P's side channel, below those of the pod's own engine and those of the virtual engines.
const P_PORT: u16 = 1500;
const ENGINE_PORT: u16 = 2000;
const VIRTUAL_PORT: u16 = 10_000;
/// P's engine.
const P: &str = "scale-prefill";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What the pod does
    #[arg(long, value_enum)]
    role: RoleArg,
    /// Its DP ranks
    #[arg(long, default_value_t = 1)]
    ranks: u16,
    /// Staging slots of each
    #[arg(long, default_value_t = 256)]
    slots: u64,
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: sidecar::config::Args,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    // What is logged costs too, also what is not: as in the binary.
    tracing_subscriber::fmt().json().with_env_filter("warn").with_writer(stderr).init();
    let (net, channel, tasks) = (Loopback(LoopbackNet::new()), InProcess::new(), TaskTracker::new());
    let prefill = Engine::start((&net, &channel), P, P_PORT, &tasks).await?;
    let mut own = Vec::new();
    for rank in 0..args.ranks {
        let id = format!("scale-own_dp{rank}");
        own.push(Engine::start((&net, &channel), &id, ENGINE_PORT + rank, &tasks).await?);
    }
    let line = [
        "sidecar".to_owned(),
        format!("--role={}", if args.role == RoleArg::Decode { "decode" } else { "prefill" }),
        "--engine=http://127.0.0.1:1".to_owned(),
        format!("--engine-side-channel={HOST}:{ENGINE_PORT}"),
        format!("--side-channel-listen={HOST}:{VIRTUAL_PORT}"),
        format!("--advertise-host={HOST}"),
        format!("--data-parallel-size={}", args.ranks),
        format!("--staging-bytes={}", args.slots * SLOT_BYTES),
        "--listen=127.0.0.1:0".to_owned(),
        "--max-connections=16384".to_owned(),
        // What has landed and is not collected is to stay.
        "--kv-lease=60m".to_owned(),
    ];
    let settings = Line::try_parse_from(line)?.args.settings()?;
    let parts = Parts {
        fabrics: Arc::new(net.clone()),
        engine: Arc::new(Pages::of(args.ranks)),
        side_channel: Arc::new(channel.clone()),
        receipts: Arc::new(NoReceiptSink),
        spans: Spans::default(),
        sources: Arc::new(NoSources),
    };
    let listener = bind(settings.listen).await?;
    let address = listener.local_addr()?;
    let stop = CancellationToken::new();
    let observed = (this_build("bench"), LogFilter::new("warn", |_| Ok(())));
    let pod = tasks.spawn(run_parts(settings, listener, parts, observed, Budgets::default(), stop.clone()));
    let collector = TcpListener::bind("127.0.0.1:0").await?;
    let collect = collector.local_addr()?;
    tasks.spawn(collected(collector, own.into(), channel, tasks.clone()));
    ready(address).await?;
    let p = json!({ "engine": P, "host": HOST, "port": P_PORT });
    say(&json!({ "http": address.to_string(), "collect": collect.to_string(), "prefill": p }));
    until_told().await?;
    stop.cancel();
    pod.await??;
    drop(prefill);
    Ok(())
}

/// Waits until every rank is ready.
async fn ready(api: SocketAddr) -> Result<()> {
    let mut connection = Connection::new(api);
    let all = |page: &serde_json::Value| {
        let ranks = page.get("ranks").and_then(serde_json::Value::as_array).context("ranks")?;
        anyhow::Ok(ranks.iter().all(|rank| rank.get("state").and_then(serde_json::Value::as_str) == Some("ready")))
    };
    let waiting = async {
        loop {
            let page = connection.fetch(b"GET /v1/ranks HTTP/1.1\r\nhost: bench\r\n\r\n").await?;
            if all(&serde_json::from_slice(&page)?)? {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), waiting).await.context("the ranks do not become ready")?
}

/// Takes lines `RANK REQUEST`: that rank of D has read that request.
async fn collected(listener: TcpListener, ranks: Arc<[Engine]>, channel: InProcess, tasks: TaskTracker) {
    while let Ok((stream, _)) = listener.accept().await {
        let (ranks, channel) = (Arc::clone(&ranks), channel.clone());
        tasks.spawn(async move {
            if let Err(error) = collect(stream, &ranks, &channel).await {
                complain(&error.context("collect"));
            }
        });
    }
}

async fn collect(stream: TcpStream, ranks: &[Engine], channel: &InProcess) -> Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next_line().await? {
        let Some((rank, request)) = line.split_once(' ') else { bail!("not a collection: {line}") };
        let rank: u16 = rank.parse()?;
        let engine = ranks.get(usize::from(rank)).context("no such rank")?;
        engine.collect(channel, VIRTUAL_PORT + rank, request).await?;
    }
    Ok(())
}

//! The demo's deployment: a prefill pod, a decode pod, a sidecar beside each, a router, and an unsplit reference engine.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::children::Children;
use super::client::Client;
use super::say;

/// The model's name; the engines make up everything else about it.
pub(super) const MODEL: &str = "sim-llama-3.1-8b";
const READY_WITHIN: Duration = Duration::from_secs(60);

/// What to start.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// DP ranks per pod.
    pub(super) dp: u16,
    /// `stage` or `direct`.
    pub(super) gate: &'static str,
    /// The lease of P's engines, which the router is told.
    pub(super) prefill_lease: Duration,
    /// KV blocks per DP rank of each engine.
    pub(super) blocks: u32,
    /// `--verify` of D's sidecar.
    pub(super) verify: String,
    /// `--memory` of P's and D's engines: the reference engine's is the host's.
    pub(super) memory: String,
    /// `--staging` of both sidecars.
    pub(super) staging: String,
    /// More flags of P's engines.
    pub(super) prefill_flags: &'static [&'static str],
    /// Faults of D's sidecar.
    pub(super) sidecar_faults: &'static [&'static str],
    /// Faults of the router.
    pub(super) router_faults: &'static [&'static str],
    /// How late the bytes of P's rank 0 start to move.
    pub(super) slow_wire: Option<Duration>,
    /// The NIXL library, when it is not to be searched for.
    pub(super) nixl_library: Option<PathBuf>,
}

/// The running deployment.
#[derive(Debug)]
pub(super) struct Topology {
    pub(super) children: Children,
    pub(super) prefill: String,
    pub(super) decode: String,
    pub(super) reference: String,
    pub(super) prefill_sidecar: String,
    pub(super) decode_sidecar: String,
    pub(super) router: String,
    pub(super) request_log: PathBuf,
    pub(super) receipt_log: PathBuf,
}

/// [`Topology`] without its processes.
#[derive(Debug)]
pub(super) struct Started {
    urls: [String; 6],
    logs: [PathBuf; 2],
}

impl Topology {
    pub(super) fn new(started: Started, children: Children) -> Self {
        let [prefill, decode, reference, prefill_sidecar, decode_sidecar, router] = started.urls;
        let [request_log, receipt_log] = started.logs;
        Self { children, prefill, decode, reference, prefill_sidecar, decode_sidecar, router, request_log, receipt_log }
    }
}

/// Starts everything into `children` and waits until every rank is ready. On failure, or when dropped before its end, what was started
/// is in `children`, for the caller to end.
pub(super) async fn start(folder: &Path, plan: &Plan, client: &Client, children: &mut Children) -> Result<Started> {
    let (request_log, receipt_log) = (folder.join("decode.requests.jsonl"), folder.join("decode.receipts.jsonl"));
    let path = |path: &Path| path.display().to_string();
    let lease = format!("{}ms", plan.prefill_lease.as_millis());
    let library = plan.nixl_library.iter().flat_map(|library| ["--nixl-library".to_owned(), path(library)]);
    let library: Vec<String> = library.collect();
    let engine = |role: &str, dp: u16, ports: u16, more: &[String]| {
        let mut args = words(&format!(
            "sim --role {role} --listen 127.0.0.1:0 --side-channel 127.0.0.1:{ports} --data-parallel-size {dp} --model {MODEL} --num-blocks {}",
            plan.blocks
        ));
        args.extend_from_slice(more);
        args.extend_from_slice(&library);
        args
    };

    say::progress("starting the prefill pod's engines");
    let prefill_ports = free_ports(plan.dp)?;
    let mut more = vec!["--kv-lease-ms".to_owned(), plan.prefill_lease.as_millis().to_string()];
    more.extend(plan.prefill_flags.iter().map(|flag| (*flag).to_owned()));
    let memory = ["--memory".to_owned(), plan.memory.clone()];
    more.extend(memory.clone());
    let prefill = children.start(folder, "prefill", &engine("prefill", plan.dp, prefill_ports, &more)).await?.url();
    say::progress("starting the decode pod's engines");
    let decode_ports = free_ports(plan.dp)?;
    let mut log = vec!["--request-log".to_owned(), path(&request_log)];
    log.extend(memory);
    let decode = children.start(folder, "decode", &engine("decode", plan.dp, decode_ports, &log)).await?.url();
    say::progress("starting the reference engine");
    let reference = children.start(folder, "reference", &engine("both", 1, free_ports(1)?, &[])).await?.url();

    let sidecar = |role: &str, engine: &str, ports: u16| {
        let mut args = words(&format!(
            "sidecar --role {role} --engine {engine} --engine-side-channel 127.0.0.1:{ports} --data-parallel-size {} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging {} --staging-bytes 512MiB --kv-lease {lease}",
            plan.dp, plan.staging
        ));
        args.extend_from_slice(&library);
        args
    };
    say::progress("starting the prefill pod's sidecar");
    let prefill_sidecar =
        children.start(folder, "prefill-sidecar", &sidecar("prefill", &prefill, prefill_ports)).await?.url();
    say::progress("starting the decode pod's sidecar");
    let mut args = sidecar("decode", &decode, decode_ports);
    args.extend(["--receipt-log".to_owned(), path(&receipt_log), "--verify".to_owned(), plan.verify.clone()]);
    args.extend(faults(plan.sidecar_faults));
    if let Some(late) = plan.slow_wire {
        args.extend(["--fault".to_owned(), format!("slow-wire={}@{prefill_ports}", late.as_millis())]);
    }
    let decode_sidecar = children.start(folder, "decode-sidecar", &args).await?.url();

    say::progress("starting the router");
    let mut args = words(&format!(
        "router --pd-disaggregation --prefill {prefill},sidecar={prefill_sidecar} --decode {decode},sidecar={decode_sidecar} --intra-node-data-parallel-size {} --host 127.0.0.1 --port 0 --debug-headers --gate {} --kv-lease {lease}",
        plan.dp, plan.gate
    ));
    args.extend(faults(plan.router_faults));
    let router = children.start(folder, "router", &args).await?.url();
    wait_until_ready(client, children, &router, plan.dp).await?;
    let urls = [prefill, decode, reference, prefill_sidecar, decode_sidecar, router];
    Ok(Started { urls, logs: [request_log, receipt_log] })
}

fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}

fn faults(names: &[&str]) -> impl Iterator<Item = String> {
    names.iter().flat_map(|name| ["--fault".to_owned(), (*name).to_owned()])
}

/// Until the router says that every rank of both pods is ready.
async fn wait_until_ready(client: &Client, children: &mut Children, router: &str, dp: u16) -> Result<()> {
    let until = Instant::now() + READY_WITHIN;
    loop {
        children.check()?;
        let answer = client.get(&format!("{router}/readyz")).await?;
        let targets = answer.body.get("targets").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let ready = targets.iter().filter(|target| target.get("ready").and_then(Value::as_bool) == Some(true)).count();
        let expected = 2 * usize::from(dp);
        if ready >= expected {
            return Ok(());
        }
        if Instant::now() >= until {
            bail!("{ready} of {expected} ranks are ready after {READY_WITHIN:?}; the router says {}", answer.body);
        }
        say::progress(&format!("waiting for the ranks: {ready} of {expected} ready"));
        sleep(Duration::from_millis(100)).await;
    }
}

/// The first of `count` neighbouring ports that are free now.
fn free_ports(count: u16) -> Result<u16> {
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        let first = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
        let base = first.local_addr()?.port();
        let rest: Result<Vec<_>, _> =
            (1..count).map(|offset| TcpListener::bind(("127.0.0.1", base.saturating_add(offset)))).collect();
        if rest.is_ok() {
            return Ok(base);
        }
    }
    bail!("no {count} neighbouring ports are free")
}

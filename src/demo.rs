//! `kvgate demo`: the whole path as real processes on this machine, each text compared with an engine that does not split.

mod children;
mod client;
mod controls;
mod evidence;
mod report;
mod say;
mod slow_wire;
mod topology;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::Value;
use sidecar::config::StagingArg;
use sim::config::MemoryArg;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use children::Children;
use client::{Answer, Client};
use controls::Fault;
use report::{Outcome, Report, Verdict};
use topology::{Plan, Topology};
use workload::Ask;

/// `kvgate demo`'s arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Data-parallel ranks per pod
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    dp: u16,
    /// Wait for receipts (stage) or send P's parameters straight to D (direct, the baseline)
    #[arg(long, value_enum, default_value_t = Gate::Stage)]
    gate: Gate,
    /// Break something on purpose, as a control
    #[arg(long, value_enum)]
    fault: Option<Fault>,
    /// What the decode pod's sidecar compares with digests of the prefill engine's blocks: off, sample:K or full
    #[arg(long, default_value = "off", value_parser = sidecar::config::checked_verify)]
    verify: String,
    /// Where P's and D's engines have their KV caches
    #[arg(long, value_enum, default_value_t = MemoryArg::Dram)]
    memory: MemoryArg,
    /// Where the decode pod's sidecar stages: GPU memory is for engines with theirs there
    #[arg(long, value_enum, default_value_t = StagingArg::Dram)]
    staging: StagingArg,
    /// Leave everything running after the requests, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Where report.json and the logs go
    #[arg(long, default_value = "target/demo", value_name = "FOLDER")]
    out: PathBuf,
    /// The NIXL library, instead of searching for one
    #[arg(long, env = "KVGATE_NIXL_LIBRARY", value_name = "PATH")]
    nixl_library: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Gate {
    Stage,
    Direct,
}

impl Gate {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stage => "stage",
            Self::Direct => "direct",
        }
    }
}

/// Runs the demo and ends everything it started.
///
/// # Errors
/// When a process cannot be started or talked to; wrong texts are no error but a failing exit code.
pub(crate) async fn run(args: &Args, stop: CancellationToken) -> Result<ExitCode> {
    std::fs::create_dir_all(&args.out).with_context(|| format!("create {}", args.out.display()))?;
    let folder = args.out.canonicalize()?;
    clear(&folder)?;
    let client = Client::new();
    let plan = plan(args);
    let mut children = Children::default();
    let started = tokio::select! {
        started = topology::start(&folder, &plan, &client, &mut children) => Some(started),
        () = stop.cancelled() => None,
    };
    let started = match started {
        Some(Ok(started)) => started,
        Some(Err(error)) => {
            say::end_progress();
            children.stop().await;
            return Err(error);
        }
        None => {
            children.stop().await;
            return Ok(interrupted());
        }
    };
    let mut topology = Topology::new(started, children);
    let result = tokio::select! {
        result = exercise(args, &mut topology, &client, &folder) => result.map(Some),
        () = stop.cancelled() => Ok(None),
    };
    if args.keep && matches!(result, Ok(Some(_))) {
        invite(&topology);
        stop.cancelled().await;
    }
    say::progress("ending what was started");
    let killed = topology.children.stop().await;
    say::end_progress();
    for name in killed {
        say::line(&format!("{name} did not end by itself and was killed"));
    }
    match result? {
        Some((report, code)) => {
            say::line(&report.summary());
            Ok(code)
        }
        None => Ok(interrupted()),
    }
}

fn interrupted() -> ExitCode {
    say::end_progress();
    say::line("demo: interrupted");
    ExitCode::FAILURE
}

/// Removes what an earlier run left, so that no old port or log line is mistaken for a new one.
fn clear(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn plan(args: &Args) -> Plan {
    let plan = Plan {
        dp: args.dp,
        gate: args.gate.as_str(),
        prefill_lease: Duration::from_secs(30),
        blocks: 256,
        verify: args.verify.clone(),
        memory: word(&args.memory),
        staging: word(&args.staging),
        prefill_flags: &[],
        sidecar_faults: &[],
        router_faults: &[],
        slow_wire: None,
        nixl_library: args.nixl_library.clone(),
    };
    match args.fault {
        Some(fault) => fault.prepare(plan),
        None => plan,
    }
}

/// A value as it is written on a command line.
fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Sends the workload, says how each request went, and writes the report.
async fn exercise(args: &Args, topology: &mut Topology, client: &Client, folder: &Path) -> Result<(Report, ExitCode)> {
    say::end_progress();
    say::line(&format!("{} requests to {} (gate {})", asks(args).len(), topology.router, args.gate.as_str()));
    say::line(&report::heading());
    let mut outcomes = Vec::new();
    for ask in asks(args) {
        topology.children.check()?;
        say::progress(&format!("  {} …", ask.name));
        let disturb = async {
            match args.fault {
                Some(fault) => fault.disturb(topology, client, outcomes.len()).await,
                None => Ok(()),
            }
        };
        let (outcome, ()) = tokio::try_join!(one(&ask, topology, client), disturb)?;
        say::end_progress();
        say::line(&report::row(&outcome));
        outcomes.push(outcome);
    }
    let evidence = evidence::join(&topology.request_log, &topology.receipt_log)?;
    let version = client.get(&format!("{}/version", topology.decode_sidecar)).await?;
    let nixl = version.body.get("nixl").cloned().unwrap_or(Value::Null);
    let mut report = Report::new(&outcomes, evidence, nixl);
    report.gate = args.gate.as_str();
    report.verify.clone_from(&args.verify);
    (report.memory, report.staging) = (word(&args.memory), word(&args.staging));
    let code = match args.fault {
        // A text that came without a decode of transferred KV proves nothing.
        None => ExitCode::from(u8::from(
            report.correct < report.requests
                || report.decodes < report.requests
                || (args.gate == Gate::Stage && report.decodes_without_receipt > 0),
        )),
        Some(fault) => fault.judge(&mut report, topology, client).await?,
    };
    for note in &report.notes {
        say::line(note);
    }
    report.write(&folder.join("report.json"))?;
    Ok((report, code))
}

fn asks(args: &Args) -> Vec<Ask> {
    match args.fault {
        Some(fault) => fault.asks(),
        None => workload::asks((2 * usize::from(args.dp)).max(8)),
    }
}

/// Sends one request to the router and to the reference, and compares.
async fn one(ask: &Ask, topology: &Topology, client: &Client) -> Result<Outcome> {
    let body = ask.body(topology::MODEL);
    let answer = client.post(&format!("{}{}", topology.router, ask.path()), &body, &[]).await?;
    let reference = client.post(&format!("{}{}", topology.reference, ask.path()), &body, &[]).await?;
    let expected = reference.text().with_context(|| format!("the reference failed: {}", reference.error()))?;
    let verdict = match answer.text() {
        Some(text) if text == expected => Verdict::Correct,
        Some(_) => Verdict::WrongText,
        None => Verdict::ClearError(answer.error()),
    };
    let transfer = match answer.header("x-kvgate-transfer") {
        Some(id) => Some(settled(&format!("{}/v1/transfers/{id}", topology.decode_sidecar), client).await?),
        None => None,
    };
    let rank = |name| answer.header(name).unwrap_or("-").to_owned();
    let ranks = format!("{}→{}", rank("x-kvgate-prefill-rank"), rank("x-kvgate-decode-rank"));
    let prefill_ms = answer.header("x-kvgate-prefill-ms").and_then(|ms| ms.parse().ok());
    Ok(Outcome { name: ask.name.clone(), verdict, ranks, ttft: ttft(&answer), prefill_ms, transfer })
}

fn ttft(answer: &Answer) -> Duration {
    answer.first_byte
}

/// The transfer's final figures: its collection is noticed a moment after the decode's first token.
async fn settled(url: &str, client: &Client) -> Result<Value> {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        let answer = client.get(url).await?;
        let collected = answer.body.pointer("/stages_us/collect").is_some_and(|stage| !stage.is_null());
        if collected || Instant::now() >= until {
            return Ok(answer.body);
        }
        sleep(Duration::from_millis(5)).await;
    }
}

fn invite(topology: &Topology) {
    say::line("\nEverything is running; Ctrl-C ends it. Things to try:");
    say::line(&format!(
        "  curl -s {}/v1/completions -H 'content-type: application/json' -d '{{\"model\":\"{}\",\"prompt\":\"hello\",\"max_tokens\":8}}'",
        topology.router,
        topology::MODEL
    ));
    say::line(&format!("  {}/debug in a browser", topology.decode_sidecar));
    for (base, path) in [
        (&topology.router, "/readyz"),
        (&topology.decode_sidecar, "/v1/ranks"),
        (&topology.decode_sidecar, "/v1/transfers?slowest=5"),
        (&topology.decode_sidecar, "/v1/latency?by=peer,stage"),
        (&topology.decode_sidecar, "/v1/peers"),
        (&topology.prefill_sidecar, "/v1/handles"),
        (&topology.decode_sidecar, "/metrics"),
    ] {
        say::line(&format!("  curl -s '{base}{path}'"));
    }
}

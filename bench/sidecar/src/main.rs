//! Clients of a decode pod's sidecar: each prefills one block on P, asks for the transfer, and lets it go. What is measured is the time from
//! `POST /v1/transfers` to the receipt, less the wire stage that the receipt itself tells. Prints one line of JSON.
#![forbid(unsafe_code)]

mod client;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use client::Client;

/// The whole time that one exchange may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Parser)]
struct Args {
    /// P's engine
    #[arg(long)]
    prefill: SocketAddr,
    /// D's sidecar
    #[arg(long)]
    sidecar: SocketAddr,
    /// Clients at once
    #[arg(long, default_value_t = 1)]
    clients: u64,
    /// Transfers that are measured, over all clients
    #[arg(long, default_value_t = 1000)]
    transfers: u64,
    /// Transfers before those
    #[arg(long, default_value_t = 100)]
    warm: u64,
}

/// The stages before the receipt, as it tells them.
const STAGES: [&str; 5] = ["queued", "handshake", "post", "wire", "verify"];

/// What all clients share.
#[derive(Debug)]
struct Work {
    args: Args,
    begun: AtomicU64,
    /// Makes prompts and attempts differ between runs.
    run: u128,
}

/// Times in microseconds.
#[derive(Debug)]
struct Times {
    overhead: Histogram<u64>,
    whole: Histogram<u64>,
    wire: Histogram<u64>,
    /// By the names in [`STAGES`].
    stages: [Histogram<u64>; STAGES.len()],
}

impl Times {
    fn new() -> Result<Self> {
        let empty = || Histogram::new_with_bounds(1, 60_000_000, 3);
        Ok(Self {
            overhead: empty()?,
            whole: empty()?,
            wire: empty()?,
            stages: [empty()?, empty()?, empty()?, empty()?, empty()?],
        })
    }
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the result is what is printed")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let run = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let work = Arc::new(Work { args: args.clone(), begun: AtomicU64::new(0), run });
    let tasks = TaskTracker::new();
    let since = Instant::now();
    let clients: Vec<_> = (0..args.clients).map(|_| tasks.spawn(client(Arc::clone(&work)))).collect();
    let mut all = Times::new()?;
    for client in clients {
        let times = client.await.context("a client ends")??;
        all.overhead.add(times.overhead)?;
        all.whole.add(times.whole)?;
        all.wire.add(times.wire)?;
        for (all, stage) in all.stages.iter_mut().zip(times.stages) {
            all.add(stage)?;
        }
    }
    let shown = |times: &Histogram<u64>| {
        json!({
            "p50_us": times.value_at_quantile(0.5), "p90_us": times.value_at_quantile(0.9),
            "p99_us": times.value_at_quantile(0.99), "max_us": times.max(),
        })
    };
    let stages: serde_json::Map<String, Value> = STAGES
        .iter()
        .zip(&all.stages)
        .map(|(name, times)| ((*name).to_owned(), json!(times.value_at_quantile(0.5))))
        .collect();
    let seconds = since.elapsed().as_secs_f64();
    let result = json!({
        "clients": args.clients, "transfers": all.overhead.len(), "seconds": seconds,
        "overhead": shown(&all.overhead), "whole": shown(&all.whole), "wire": shown(&all.wire),
        "stages_p50_us": stages,
    });
    println!("{result}");
    Ok(())
}

async fn client(work: Arc<Work>) -> Result<Times> {
    let (mut prefill, mut sidecar) = (Client::new(work.args.prefill), Client::new(work.args.sidecar));
    let mut times = Times::new()?;
    loop {
        let number = work.begun.fetch_add(1, Ordering::Relaxed);
        if number >= work.args.warm.saturating_add(work.args.transfers) {
            return Ok(times);
        }
        let name = format!("bench-{}-{number}", work.run);
        let body = json!({
            "model": "m", "prompt": name, "max_tokens": 1, "temperature": 0,
            "kv_transfer_params": { "do_remote_decode": true, "do_remote_prefill": false },
        });
        let asked = Instant::now();
        let answer = prefill.send("POST", "/v1/completions", &name, &body, PATIENCE).await.context("prefill")?;
        let ask = json!({
            "attempt_id": name, "request_id": name, "dp_rank": 0, "kv_transfer_params": answer.get("kv_transfer_params"),
            "deadline_ms": 20_000, "lease_ms": 30_000, "prefill_done_age_ms": millis(asked.elapsed()),
        });
        let since = Instant::now();
        let answer = sidecar.send("POST", "/v1/transfers", &name, &ask, PATIENCE).await.context("transfer")?;
        let whole = micros(since.elapsed());
        let Some(wire) = answer.pointer("/receipt/stages_us/wire").and_then(Value::as_u64) else {
            bail!("no receipt: {answer}")
        };
        if number >= work.args.warm {
            times.whole.saturating_record(whole);
            times.wire.saturating_record(wire);
            times.overhead.saturating_record(whole.saturating_sub(wire));
            for (times, name) in times.stages.iter_mut().zip(STAGES) {
                let stage = answer.pointer("/receipt/stages_us").and_then(|stages| stages.get(name));
                times.saturating_record(stage.and_then(Value::as_u64).unwrap_or_default());
            }
        }
        let path = format!("/v1/transfers/{}", answer.get("transfer_id").and_then(Value::as_str).unwrap_or_default());
        sidecar.send("DELETE", &path, &name, &Value::Null, PATIENCE).await.context("let it go")?;
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

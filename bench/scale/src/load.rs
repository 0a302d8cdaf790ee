//! What the loads share: their clients by the clock, times, and the line that tells them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bench_router::pace::Pace;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::say;

/// Latencies are counted up to this, in microseconds.
const LONGEST_US: u64 = 120_000_000;

/// How much of what, and how fast.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Amount {
    /// Connections, each with one request under way
    #[arg(long, default_value_t = 16)]
    pub(crate) connections: u32,
    /// Requests in all
    #[arg(long, default_value_t = u64::MAX)]
    pub(crate) requests: u64,
    /// No new requests after so many seconds
    #[arg(long, default_value_t = 60.0)]
    pub(crate) seconds: f64,
    /// Requests a second over all connections, by the clock
    #[arg(long)]
    pub(crate) rate: Option<f64>,
}

/// What the clients of a load have in common.
#[derive(Debug)]
pub(crate) struct Work<A> {
    pub(crate) args: A,
    pub(crate) pace: Pace,
    pub(crate) times: Times,
}

/// Runs a client for each connection until the pace is over, and says what they measured.
pub(crate) async fn run<A, C>(args: A, amount: &Amount, client: impl Fn(Arc<Work<A>>) -> C) -> Result<()>
where
    A: Send + Sync + 'static,
    C: Future<Output = Result<()>> + Send + 'static,
{
    let pace = Pace::new(amount.requests, amount.seconds, amount.rate);
    let work = Arc::new(Work { args, pace, times: Times::new()? });
    let tasks = TaskTracker::new();
    let clients: Vec<_> = (0..amount.connections).map(|_| tasks.spawn(client(Arc::clone(&work)))).collect();
    for client in clients {
        client.await.context("a client ends")??;
    }
    say(&work.times.shown(work.pace.elapsed().as_secs_f64())?);
    Ok(())
}

/// Times in microseconds, of the first half of the run and of the second.
#[derive(Debug)]
pub(crate) struct Times(Mutex<[Histogram<u64>; 2]>);

impl Times {
    pub(crate) fn new() -> Result<Self> {
        let empty = || Histogram::new_with_bounds(1, LONGEST_US, 3);
        Ok(Self(Mutex::new([empty()?, empty()?])))
    }

    pub(crate) fn note(&self, late: bool, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let [first, second] = &mut *self.0.lock();
        if late { second } else { first }.saturating_record(took);
    }

    /// As the load generator of `bench-router` tells them.
    pub(crate) fn shown(&self, seconds: f64) -> Result<Value> {
        let halves = self.0.lock();
        let [first, second] = &*halves;
        let mut all = first.clone();
        all.add(second)?;
        Ok(json!({
            "requests": all.len(), "seconds": seconds,
            "whole_us": {
                "p50": all.value_at_quantile(0.5), "p90": all.value_at_quantile(0.9), "p99": all.value_at_quantile(0.99),
                "max": all.max(),
            },
            "halves_p50_us": [first.value_at_quantile(0.5), second.value_at_quantile(0.5)],
        }))
    }
}

/// A request with a JSON body.
pub(crate) fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

//! The router as `kvgate router` runs it, on an allocator that counts.

use std::alloc::System;
use std::io::{BufRead as _, Write as _, stderr, stdin, stdout};

use anyhow::Result;
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use telemetry::Observed;
use telemetry::log_filter::LogFilter;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Runs until standard input ends.
pub(crate) fn router(args: router::config::Args) -> Result<()> {
    // What is logged costs too, also what is not: as in the binary.
    tracing_subscriber::fmt().json().with_env_filter(EnvFilter::new("info")).with_writer(stderr).init();
    let stop = CancellationToken::new();
    let until = stop.clone();
    let answers = move || {
        for line in stdin().lock().lines() {
            let stats = MEMORY.stats();
            let told = say(&json!({
                "allocations": stats.allocations, "reallocations": stats.reallocations, "bytes": stats.bytes_allocated,
            }));
            if line.is_err() || told.is_err() {
                break;
            }
        }
        until.cancel();
    };
    let _detached = std::thread::Builder::new().name("answers".to_owned()).spawn(answers)?;
    let observed = Observed::from(LogFilter::new("info", |_| Ok(())));
    tokio::runtime::Runtime::new()?.block_on(router::run(args, "bench", observed, stop))?;
    Ok(())
}

/// One line to whoever steers.
pub(crate) fn say(answer: &Value) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{answer}")?;
    Ok(out.flush()?)
}

/// The last words.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nobody may be reading; the exit code says it too.
    drop(writeln!(stderr(), "bench-hot: {error:#}"));
}

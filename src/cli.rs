//! Subcommands and exit codes: 64 for a command line or configuration that cannot work, 1 for anything else that failed.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sidecar::log_filter::LogFilter;
use tokio::runtime::Runtime;

use crate::{demo, logging, parent, stop};

const USAGE: u8 = 64;
const GIT_SHA: &str = env!("KVGATE_GIT_SHA");

#[derive(Debug, Parser)]
#[command(name = "kvgate", version = version(), about = "Dispatches decode only after its KV cache has arrived")]
struct Cli {
    #[command(flatten)]
    logging: logging::Args,
    /// End with the process that started this one (given by `kvgate demo`).
    #[arg(long, hide = true, global = true, value_name = "PID")]
    end_with_parent: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon beside a vLLM pod
    Sidecar(Box<sidecar::config::Args>),
    /// The OpenAI-compatible prefill/decode router
    Router(Box<router::config::Args>),
    /// An embedded engine that speaks vLLM's HTTP and side channel over real NIXL memory
    Sim(Box<sim::config::Args>),
    /// The whole path on this machine: two pods, two sidecars, a router; checks every text
    Demo(demo::Args),
}

fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("KVGATE_GIT_SHA"), ")")
}

/// Parses, runs, and says in one line what went wrong.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            // The terminal that asked may be gone; there is nobody left to tell.
            drop(error.print());
            return code;
        }
    };
    if let Some(pid) = cli.end_with_parent
        && !parent::end_with(pid)
    {
        return ExitCode::FAILURE;
    }
    let log_filter = logging::start(&cli.logging);
    match run(cli.command, log_filter) {
        Ok(code) => code,
        Err((error, code)) => {
            tracing::error!(error = format!("{error:#}"), "kvgate ends with an error");
            ExitCode::from(code)
        }
    }
}

fn run(command: Command, log_filter: LogFilter) -> Result<ExitCode, (anyhow::Error, u8)> {
    let runtime = Runtime::new().map_err(|error| (error.into(), 1))?;
    runtime.block_on(async {
        let stop = stop::on_signal().map_err(|error| (error.into(), 1))?;
        match command {
            Command::Sidecar(args) => sidecar::run(*args, GIT_SHA, log_filter, stop).await.map_err(|error| {
                let code = error.exit_code();
                (error.into(), code)
            })?,
            Command::Router(args) => router::run(*args, GIT_SHA, stop).await.map_err(|error| {
                let code = error.exit_code();
                (error.into(), code)
            })?,
            Command::Sim(args) => sim::run(*args, stop).await.map_err(|error| {
                let code = error.exit_code();
                (error.into(), code)
            })?,
            Command::Demo(args) => return demo::run(&args, stop).await.map_err(|error| (error, 1)),
        }
        Ok(ExitCode::SUCCESS)
    })
}

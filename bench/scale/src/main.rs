//! What `bench/scale.py` measures growth with: a sidecar as its process runs it, between engines and NIXL agents that are made up in memory
//! (`sidecar`), and loads for it and for the router: transfers by the clock (`transfers`), block handles (`handles`), connections that are
//! only held (`hold`).
//!
//! The sidecar's core, HTTP API and allocator are the real ones. What is not: the engines, which answer from memory, and NIXL, whose reads are
//! copies of a few bytes. So what is counted is the control path.
#![forbid(unsafe_code)]

mod engines;
mod handles;
mod hold;
mod load;
mod pod;
mod transfers;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// As in the binary: memory is counted here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(
    name = "bench-scale",
    about = "A sidecar between made-up engines, and loads, for the scale area of `make bench`"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A sidecar; prints where it is as JSON once all its ranks are ready, and ends with its standard input
    Sidecar(pod::Args),
    /// Transfers through a sidecar's HTTP API; prints what it measured as JSON
    Transfers(transfers::Args),
    /// Reports block handles of a prefill pod to its sidecar and lets them go; prints what it measured as JSON
    Handles(handles::Args),
    /// Opens connections, sends one request on each and keeps them; says so, and ends with its standard input
    Hold(hold::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the last words of a command line tool")]
fn complain(error: &anyhow::Error) {
    eprintln!("bench-scale: {error:#}");
}

/// One line for whoever steers.
#[expect(clippy::print_stdout, reason = "the result is what is printed")]
fn say(line: &serde_json::Value) {
    println!("{line}");
}

fn run(command: Command) -> Result<()> {
    match command {
        // As many threads as the process has.
        Command::Sidecar(args) => tokio::runtime::Runtime::new()?.block_on(pod::run(&args)),
        Command::Transfers(args) => single()?.block_on(transfers::run(&args)),
        Command::Handles(args) => single()?.block_on(handles::run(&args)),
        Command::Hold(args) => single()?.block_on(hold::run(&args)),
    }
}

fn single() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Standard input comes to its end: whoever steers has what it wanted.
async fn until_told() -> Result<()> {
    // Standard input is read on a thread of its own.
    let (told, end) = tokio::sync::oneshot::channel();
    let _detached = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let read = std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new());
        drop(told.send(read));
    })?;
    end.await??;
    Ok(())
}

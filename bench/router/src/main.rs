//! What `bench/router.py` measures routers with: engines and sidecars that cost next to nothing, and a load generator.
//!
//! HTTP is written by hand on both sides: whatever the stubs and the load generator use of the two cores, the router under
//! test does not get. Both keep to HTTP/1.1 with `content-length` or chunked bodies, which is all that is needed here.
#![forbid(unsafe_code)]

mod load;
mod stub;

use std::error::Error;
use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "bench-router", about = "Stubs and load for `make bench-router`")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Engines and sidecars that answer at once
    Stub(stub::Args),
    /// Closed loop of requests; prints what it measured as JSON
    Load(load::Args),
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be reading; the exit code says it too.
            drop(writeln!(stderr(), "bench-router: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Stub(args) => Ok(runtime.block_on(stub::run(args))?),
        Command::Load(args) => Ok(runtime.block_on(load::run(args))?),
    }
}

//! The hot paths of kvgate, one by one, so that their instructions can be counted (`bench/quick.py`), and the router as a process that
//! tells how often it has asked for memory (`bench/allocations.py`).
//!
//! `run PATH N` goes the path N times and does nothing else that depends on N: what two runs differ in is what the path costs.
#![forbid(unsafe_code)]

mod core;
mod counting;
mod requests;
mod wire;

use std::hint::black_box;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "bench-hot", about = "Hot paths for `make bench-quick`, and a router that counts its allocations")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Names all paths, with how often each is worth going
    List,
    /// Goes one path
    Run {
        /// Which
        path: String,
        /// How often
        times: u32,
    },
    /// Runs a router; each line on standard input is answered with its allocations so far
    Router(Box<router::config::Args>),
}

/// One path: its name, how often it is gone to be measured, and what goes it so often.
type Path = (&'static str, u32, fn(u32) -> Result<u64>);

const PATHS: &[Path] = &[
    ("router: a request, --gate direct", 300, |times| requests::whole(times, requests::Gate::Direct)),
    ("router: a request, --gate stage", 300, |times| requests::whole(times, requests::Gate::Stage)),
    ("router: a streamed chunk", 4000, requests::chunks),
    ("vllm-wire: a body read and edited twice", 400, wire::body),
    ("vllm-wire: P's answer, 128 blocks", 400, wire::answer_of_p),
    ("vllm-wire: a handshake's reply", 200, wire::handshake),
    ("vllm-wire: a notification", 4000, wire::notification),
    ("kv: a pair among 2 × 64 ranks", 1000, core::choice),
    ("kv: 128 slots asked for and given back", 1000, core::slots),
    ("kv: plan of 128 scattered blocks, 32 layers", 50, core::plan),
    ("kv: a transfer from queue to end", 4000, core::transfer),
    ("nixl: descriptors of 4096 pieces", 50, core::descriptors),
];

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            counting::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::List => {
            let names: Vec<_> =
                PATHS.iter().map(|(name, times, _)| serde_json::json!({"name": name, "times": times})).collect();
            counting::say(&serde_json::Value::from(names))
        }
        Command::Run { path, times } => {
            let (_, _, go) =
                PATHS.iter().find(|(name, ..)| *name == path).context("no such path: see `bench-hot list`")?;
            black_box(go(times)?);
            Ok(())
        }
        Command::Router(args) => counting::router(*args),
    }
}

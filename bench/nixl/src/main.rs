//! kvgate's participants in `bench/nixl.py`: a process that serves memory as the sidecar does, one that reads as the sidecar does, and
//! one that copies the same bytes within itself. They take commands on standard input, one a line, and answer each with one line of JSON:
//!
//! | command | does |
//! |---|---|
//! | `peer BASE BYTES METADATA_HEX` | loads the process to read from |
//! | `blocks BLOCK_BYTES ID…` | what every read from now on moves: these blocks of the peer's memory, in prompt order |
//! | `run SECONDS MOST` | moves them until the time is over or the count is reached, at least once, and then compares what landed |
//!
//! The C and Python participants (`raw.c`, `peer.py`) speak the same. The first word of each 4 KiB page at the source is its own
//! offset, which is what is compared.
#![forbid(unsafe_code)]

mod copy;
mod counted;
mod reader;
mod source;
mod work;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use nixl::{Agent, AgentConfig, AgentName, Cores, Lanes};
use nixl_sys::Api;
use std::sync::Arc;

#[derive(Debug, Parser)]
#[command(name = "bench-nixl", about = "Participants of `make bench-nixl`")]
struct Cli {
    #[command(subcommand)]
    role: Role,
    /// NIXL's setting for connections
    #[arg(long, global = true, value_enum, default_value_t = ErrorHandling::Peer)]
    error_handling: ErrorHandling,
    /// Cores that the reader thinks it has, instead of those it may use; with one it never has a second agent
    #[arg(long, global = true)]
    cores: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ErrorHandling {
    /// NIXL's default: a dead peer is noticed
    Peer,
    /// None, which lets UCX use shared memory
    None,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serves memory
    Source {
        /// Its size
        #[arg(long)]
        bytes: u64,
    },
    /// Reads
    Reader {
        /// Room for what is read
        #[arg(long)]
        bytes: u64,
    },
    /// Copies without NIXL
    Copy {
        /// Size of the memory that is copied from
        #[arg(long)]
        source_bytes: u64,
        /// Room for what is copied
        #[arg(long)]
        bytes: u64,
    },
    /// Says what this machine's UCX has
    Machine,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            work::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    match cli.role {
        Role::Source { bytes } => source::serve(&*agent(cli, "source", AgentConfig::serve)?, bytes),
        Role::Reader { bytes } => {
            let (api, config) = configured(cli, "reader", AgentConfig::pull)?;
            let cores = cli.cores.map_or_else(Cores::of_this_process, Cores::new);
            let fabric = Lanes::start(api, config, cores).context("make the agent")?;
            work::obey(reader::Reader::new(fabric, bytes)?)
        }
        Role::Copy { source_bytes, bytes } => work::obey(copy::Copy::new(source_bytes, bytes)?),
        Role::Machine => source::machine(&*agent(cli, "machine", AgentConfig::pull)?),
    }
}

fn agent(cli: &Cli, name: &str, config: impl FnOnce(AgentName) -> AgentConfig) -> Result<Arc<Agent>> {
    let (api, config) = configured(cli, name, config)?;
    Agent::start(api, config).context("make the agent")
}

/// An agent as the sidecar makes it.
fn configured(
    cli: &Cli,
    name: &str,
    config: impl FnOnce(AgentName) -> AgentConfig,
) -> Result<(&'static Api, AgentConfig)> {
    let api = Api::load(None)?;
    let mut config = config(AgentName::new(format!("bench-{name}-{}", std::process::id()))?);
    if cli.error_handling == ErrorHandling::None {
        config.backend_params.push(("ucx_error_handling_mode".to_owned(), "none".to_owned()));
    }
    Ok((api, config))
}

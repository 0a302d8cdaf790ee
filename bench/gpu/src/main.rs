//! `bench-gpu`: what GPU memory costs through NIXL, beside a plain device copy of the same bytes, and what the kernels do with the card's memory
//! bandwidth. One process that measures and one that it reads from, both on one GPU; prints a table, and JSON with `--json`.
//!
//! | row | is |
//! |---|---|
//! | copy | `cuMemcpyDtoD` of all bytes at once |
//! | read, joined | NIXL READ from the other process: 32 descriptors, as of a long request whose blocks lie together |
//! | read, scattered | the same bytes as descriptors of one block each |
//! | digest | XXH64 of pages, the kernels alone and with the list and the digests on their way; compared with the host's |
//! | zero | zeroing of pages in one launch |
//! | leak | memory of GPU and process before and after many reads |
#![forbid(unsafe_code)]

mod digest;
mod leak;
mod read;
mod report;
mod source;
mod timing;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use cuda::Gpu;

use report::Report;

#[derive(Clone, Debug, Parser)]
#[command(
    name = "bench-gpu",
    about = "GPU memory through NIXL beside a plain device copy; kernels beside memory bandwidth"
)]
struct Cli {
    /// The GPU, as this process counts them
    #[arg(long, default_value_t = 0)]
    gpu: u32,
    /// MiB that each row moves
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(4..))]
    mib: u64,
    /// Times that each row is measured; the median counts
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Reads of the leak row
    #[arg(long, default_value_t = 10_000)]
    reads: u32,
    /// Exit with 1 when a goal is missed
    #[arg(long)]
    judge: bool,
    /// Where the figures go as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Serve memory until standard input ends
    #[arg(long, hide = true)]
    source: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            report::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let gpu = Gpu::open(cli.gpu)?;
    let bytes = cli.mib << 20;
    if cli.source {
        source::serve(&gpu, bytes)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut report = Report::of(&gpu, bytes)?;
    digest::measure(&gpu, bytes, cli.rounds, &mut report)?;
    let mut reader = read::Reader::start(&gpu, cli.gpu, bytes)?;
    reader.measure(cli.rounds, &mut report)?;
    leak::measure(&mut reader, cli.reads, &mut report)?;
    report.print()?;
    if let Some(file) = &cli.json {
        std::fs::write(file, report.json()).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(if cli.judge && !report.is_met() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

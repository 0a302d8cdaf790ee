//! `soak --seeds 300` runs many seeds and prints their figures; `soak --seed 17` runs one and prints what happened.

#![expect(clippy::print_stdout, reason = "this is what it is for")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::Parser;
use soak::{children, entropy, evidence, run};

#[derive(Debug, Parser)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Only this one, with everything that happened
    #[arg(long)]
    seed: Option<u64>,
    /// It with a fault of the router or the sidecars that must be found out: skip-gate, corrupt-staging, or panic
    #[arg(long, value_name = "NAME")]
    control: Option<String>,
    /// Its outcome as one line of JSON
    #[arg(long)]
    json: bool,
    /// Also write what the processes log, at this level, as in info or router=debug
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Where the figures are written as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => one(seed, &args),
        None => many(&args),
    }
}

fn one(seed: u64, args: &Args) -> ExitCode {
    entropy::seed(seed);
    if let Some(filter) = &args.log {
        let format = tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false);
        format.with_writer(std::io::stderr).init();
    }
    let mut outcome = run::run(seed, args.control.as_deref());
    let peak = evidence::peak_mib();
    outcome.check_memory(peak);
    let well = outcome.broken.is_empty();
    if args.json {
        outcome.peak_mib = peak;
        if well {
            outcome.log.clear();
        }
        println!("{}", serde_json::to_string(&outcome).unwrap_or_default());
    } else {
        for line in std::mem::take(&mut outcome.log) {
            println!("{line}");
        }
        println!("{outcome:#?}");
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(args: &Args) -> ExitCode {
    let Ok(soak) = std::env::current_exe() else { return ExitCode::FAILURE };
    let at_a_time = available_parallelism().map_or(1, usize::from);
    let table = children::run(&soak, args.from..args.from + args.seeds, at_a_time);
    print!("{table}");
    if let Some(path) = &args.report {
        let written = serde_json::to_vec_pretty(&table).map(|json| std::fs::write(path, json));
        if !matches!(written, Ok(Ok(()))) {
            println!("the report cannot be written to {}", path.display());
            return ExitCode::FAILURE;
        }
    }
    if table.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

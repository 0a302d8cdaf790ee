//! Draws what the benches measured: `bench-plots TARGET_BENCH DOCS_BENCHMARKS` reads `TARGET_BENCH/{nixl,router,scale}.json`, whichever are
//! there, and writes one SVG per plot. Called by `bench/run.py`.
//!
//! Every plot has a scale of ratios, with 1 for what the figure is beside: absolute times belong to one machine.
#![forbid(unsafe_code)]

mod draw;
mod nixl;
mod router;
mod scale;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the last words of a command line tool")]
fn complain(error: &anyhow::Error) {
    eprintln!("bench-plots: {error:#}");
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = words.as_slice() else { bail!("usage: bench-plots TARGET_BENCH DOCS_BENCHMARKS") };
    let (from, to) = (Path::new(from), Path::new(to));
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    if let Some(found) = read(from, "nixl")? {
        nixl::plot(&found, to)?;
    }
    if let Some(found) = read(from, "router")? {
        router::plot(&found, to)?;
    }
    if let Some(found) = read(from, "scale")? {
        scale::plot(&found, to)?;
    }
    Ok(())
}

/// One area's figures; none when it was not run.
fn read<T: DeserializeOwned>(from: &Path, area: &str) -> Result<Option<T>> {
    let path = from.join(format!("{area}.json"));
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    serde_json::from_slice(&text).map(Some).with_context(|| format!("understand {}", path.display()))
}

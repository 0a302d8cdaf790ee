//! Many seeds, each in a process of its own: chance is a process's, and one that never comes to rest is ended.

use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::run::Outcome;
use crate::table::Table;

/// Seconds of real time for one seed, which needs one or two of them.
const WITHIN: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs seeds with the `soak` binary, so many at a time.
pub fn run(soak: &Path, seeds: Range<u64>, at_a_time: usize) -> Table {
    let (table, left) = (Arc::new(Mutex::new(Table::default())), Arc::new(Mutex::new(seeds)));
    let workers: Vec<_> = (0..at_a_time.max(1))
        .map(|_| {
            let (table, left, soak) = (Arc::clone(&table), Arc::clone(&left), soak.to_owned());
            thread::spawn(move || {
                loop {
                    let Some(seed) = left.lock().next() else { return };
                    match one(&soak, seed) {
                        Ok(outcome) => table.lock().add(&outcome),
                        Err(why) => table.lock().lost(seed, why),
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    Arc::try_unwrap(table).map(Mutex::into_inner).unwrap_or_default()
}

/// One seed in a process of its own.
///
/// # Errors
/// Why there is no outcome.
pub fn one(soak: &Path, seed: u64) -> Result<Outcome, String> {
    let (text, status) = output(soak, &["--seed", &seed.to_string(), "--json"])?;
    let json = text.lines().last().unwrap_or_default();
    serde_json::from_str(json).map_err(|_| format!("it ends without an outcome: {status}"))
}

/// A seed with something switched off that must not be.
///
/// # Errors
/// Why there is no outcome.
pub fn control(soak: &Path, seed: u64, control: &str) -> Result<Outcome, String> {
    let (text, status) = output(soak, &["--seed", &seed.to_string(), "--json", "--control", control])?;
    let json = text.lines().last().unwrap_or_default();
    serde_json::from_str(json).map_err(|_| format!("it ends without an outcome: {status}"))
}

/// What happened in a seed.
///
/// # Errors
/// Why it has no end.
pub fn events(soak: &Path, seed: u64) -> Result<String, String> {
    Ok(output(soak, &["--seed", &seed.to_string()])?.0)
}

fn output(soak: &Path, args: &[&str]) -> Result<(String, ExitStatus), String> {
    let mut command = Command::new(soak);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    let mut out = child.stdout.take().ok_or("it has no output")?;
    let reader = thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let mut waited = Duration::ZERO;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if waited < WITHIN => {
                thread::sleep(LOOK_EVERY);
                waited += LOOK_EVERY;
            }
            Ok(None) | Err(_) => {
                drop(child.kill());
                drop(child.wait());
                return Err(format!("it has not come to an end within {WITHIN:?}"));
            }
        }
    };
    let text = reader.join().ok().and_then(Result::ok).unwrap_or_default();
    Ok((text, status))
}

//! The doctor's own children: started from this very binary, read with a deadline, ended by being dropped.

use std::process::Stdio;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::probe::MARK;

/// The most lines of a child's words that are kept.
const MAX_WORDS: usize = 40;

/// What a child left.
#[derive(Debug)]
pub(super) struct Ended<T> {
    /// The last thing it told.
    pub(super) told: Option<T>,
    /// What it, or a library in it, wrote besides; the last lines.
    pub(super) words: Vec<String>,
    /// How it ended, when that was not well.
    pub(super) trouble: Option<String>,
}

/// `kvgate doctor <args>`, its streams ours.
pub(super) fn command(args: &[String]) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("doctor").args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

/// Runs a child to its end, at most for `patience`; it is given `input` on its standard input.
pub(super) async fn finish<T: DeserializeOwned>(mut command: Command, input: &[u8], patience: Duration) -> Ended<T> {
    let mut ended = Ended { told: None, words: Vec::new(), trouble: None };
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            ended.trouble = Some(format!("could not be started: {error}"));
            return ended;
        }
    };
    let streams = (child.stdout.take(), child.stderr.take());
    let (Some(out), Some(err)) = streams else { return ended };
    let (mut out, mut err) = (BufReader::new(out).lines(), BufReader::new(err).lines());
    let given = child.stdin.take();
    let reading = async {
        if let Some(mut given) = given {
            // A child that ends without reading says why by its own words.
            drop(given.write_all(input).await);
        }
        let (mut out_open, mut err_open) = (true, true);
        while out_open || err_open {
            // Both are cancel-safe: a line that is not whole stays in the buffer.
            tokio::select! {
                line = out.next_line(), if out_open => match line {
                    Ok(Some(line)) => take(&mut ended, &line),
                    Ok(None) | Err(_) => out_open = false,
                },
                line = err.next_line(), if err_open => match line {
                    Ok(Some(line)) => take(&mut ended, &line),
                    Ok(None) | Err(_) => err_open = false,
                },
            }
        }
        child.wait().await
    };
    match timeout(patience, reading).await {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => ended.trouble = Some(format!("ended with {status}")),
        Ok(Err(error)) => ended.trouble = Some(format!("could not be waited for: {error}")),
        Err(_) => ended.trouble = Some(format!("had not ended after {patience:?}")),
    }
    ended
}

fn take<T: DeserializeOwned>(ended: &mut Ended<T>, line: &str) {
    if let Some(told) = line.strip_prefix(MARK) {
        ended.told = serde_json::from_str(told).ok().or(ended.told.take());
    } else if !line.trim().is_empty() {
        if ended.words.len() == MAX_WORDS {
            ended.words.remove(0);
        }
        ended.words.push(line.chars().take(400).collect());
    }
}

/// Starts a child that stays, and waits for the one thing that it tells.
pub(super) async fn start<T: DeserializeOwned>(mut command: Command, patience: Duration) -> Result<(Child, T), String> {
    let mut child = command.spawn().map_err(|error| format!("could not be started: {error}"))?;
    let out = child.stdout.take().ok_or("has no output")?;
    let mut lines = BufReader::new(out).lines();
    let told = async {
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(told) = line.strip_prefix(MARK).and_then(|told| serde_json::from_str(told).ok()) {
                return Some(told);
            }
        }
        None
    };
    match timeout(patience, told).await {
        Ok(Some(told)) => Ok((child, told)),
        Ok(None) => Err("ended without a word".to_owned()),
        Err(_) => Err(format!("was silent for {patience:?}")),
    }
}

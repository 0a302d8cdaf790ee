//! `kvgate health`: one question to a process of this machine, answered by the exit code. For supervisors that can only run a command, as
//! an image's HEALTHCHECK; the image has no shell and no HTTP client for it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use secrets::tls::ClientArgs;

use crate::ask::{Asker, with_causes};

/// Shorter than the patience of whoever asks: Docker gives a check 30 s.
const PATIENCE: Duration = Duration::from_secs(5);

/// `kvgate health`'s arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The page that must answer with success: a sidecar's or a router's /livez, or /readyz
    #[arg(long, env = "KVGATE_HEALTH_URL", value_name = "URL", default_value = "http://127.0.0.1:7700/livez")]
    url: String,
    #[command(flatten)]
    upstream: ClientArgs,
}

/// Asks once.
///
/// # Errors
/// When nobody answers, or with anything but success.
pub(crate) async fn run(args: &Args) -> Result<ExitCode> {
    match Asker::new(None, args.upstream.check()?, PATIENCE).get(&args.url, "").await {
        Ok(answer) if answer.status.is_success() => Ok(ExitCode::SUCCESS),
        Ok(answer) => bail!("{} answers {}", args.url, answer.status.as_u16()),
        Err(error) => bail!("{}", with_causes(&error)),
    }
}

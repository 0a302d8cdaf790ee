//! `kvgate top`: a sidecar or a router in a terminal, as it is now.
//!
//! | module | is |
//! |---|---|
//! | `snapshot` | what was asked and answered; `--once --json` prints it |
//! | `app` | the screen's state and keys |
//! | `draw`, `bars` | the screen |
//! | `screen` | the terminal, put back however this ends |

mod app;
mod bars;
mod draw;
mod screen;
mod snapshot;

use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use secrets::Tokens;
use secrets::tls::ClientArgs;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::ask::{Asker, with_causes};
use app::{App, Wish};
use screen::Screen;
use snapshot::Snapshot;

/// For each page.
const PATIENCE: Duration = Duration::from_secs(5);

/// `kvgate top`'s arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The sidecar or router to look at
    #[arg(long, env = "KVGATE_TOP_URL", value_name = "URL", default_value = "http://127.0.0.1:7700")]
    url: String,
    /// A file with its bearer token
    #[arg(long, env = "KVGATE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    upstream: ClientArgs,
    /// Milliseconds between two looks
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    every_ms: u64,
    /// Transfers or requests that are listed
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Look once, print, end; needs --json
    #[arg(long, requires = "json")]
    once: bool,
    /// Print what was answered as JSON; needs --once
    #[arg(long, requires = "once")]
    json: bool,
}

/// Shows until `q`, or prints once.
///
/// # Errors
/// When there is no terminal, the token is of no use, or (with `--once`) nobody answers.
pub(crate) async fn run(args: &Args, stop: CancellationToken) -> Result<ExitCode> {
    let tokens = args.token_file.as_deref().map(Tokens::from_file).transpose()?;
    let asker = Asker::new(tokens.map(|tokens| tokens.header()), args.upstream.check()?, PATIENCE);
    if args.once {
        return once(args, &asker, &stop).await;
    }
    if !stdout().is_terminal() {
        bail!("kvgate top draws on a terminal; for scripts there is --once --json");
    }
    let mut screen = Screen::open()?;
    let ended = show(args, &asker, &mut screen, &stop).await;
    screen.close()?;
    ended.map(|()| ExitCode::SUCCESS)
}

async fn once(args: &Args, asker: &Asker, stop: &CancellationToken) -> Result<ExitCode> {
    let snapshot = tokio::select! {
        snapshot = Snapshot::take(asker, &args.url, usize::from(args.limit)) => snapshot?,
        () = stop.cancelled() => return Ok(ExitCode::FAILURE),
    };
    let text = serde_json::to_string_pretty(&snapshot)?;
    // A reader that has gone does not want the rest.
    drop(writeln!(stdout().lock(), "{text}"));
    Ok(ExitCode::SUCCESS)
}

async fn show(args: &Args, asker: &Asker, screen: &mut Screen, stop: &CancellationToken) -> Result<()> {
    let mut app = App::new(&args.url);
    let mut ticks = interval(Duration::from_millis(args.every_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    screen.draw(&app)?;
    loop {
        let look = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = screen.next() => match event {
                Some(screen::Event::Key(key)) => match app.key(key) {
                    Wish::Quit => return Ok(()),
                    Wish::Look => true,
                    Wish::Redraw => { screen.draw(&app)?; false }
                    Wish::Nothing => false,
                },
                Some(screen::Event::Resized) => { screen.draw(&app)?; false }
                // The terminal has gone.
                None => return Ok(()),
            },
            _ = ticks.tick() => !app.paused,
        };
        if look {
            let looked = tokio::select! {
                looked = Snapshot::take(asker, &args.url, usize::from(args.limit)) => looked,
                () = stop.cancelled() => return Ok(()),
            };
            app.take(looked.map_err(|error| with_causes(&error)));
            screen.draw(&app)?;
        }
    }
}

//! Where log lines go: JSON in pods, text on a terminal, both to standard error.

use std::io::{IsTerminal, stderr};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Logging flags, the same for every subcommand.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to log, as in `info,sidecar=debug`
    #[arg(long, env = "KVGATE_LOG", default_value = "info", global = true, value_name = "FILTER")]
    log: String,
    /// How to write it; `auto` is text on a terminal and JSON elsewhere
    #[arg(long, env = "KVGATE_LOG_FORMAT", value_enum, default_value_t = Format::Auto, global = true)]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Auto,
    Text,
    Json,
}

/// Sets up the process-wide subscriber. Call once, before anything logs.
pub(crate) fn start(args: &Args) {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse_lossy(&args.log);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let json = match args.log_format {
        Format::Auto => !stderr().is_terminal(),
        Format::Text => false,
        Format::Json => true,
    };
    if json { builder.json().init() } else { builder.with_ansi(stderr().is_terminal()).init() }
}

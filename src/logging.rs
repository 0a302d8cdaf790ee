//! Where log lines go: JSON in pods, text on a terminal, both to standard error.

use std::io::{IsTerminal, stderr};

use clap::ValueEnum;
use telemetry::log_filter::{LogFilter, LogFilterError};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::reload::Handle;

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

/// Sets up the process-wide subscriber. Call once, before anything logs. The handle changes what is logged from then on.
pub(crate) fn start(args: &Args) -> LogFilter {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse_lossy(&args.log);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // A line that finds no room is lost. To say so on the same standard error would panic, in whatever task it was that logged.
    let builder = builder.log_internal_errors(false);
    let json = match args.log_format {
        Format::Auto => !stderr().is_terminal(),
        Format::Text => false,
        Format::Json => true,
    };
    if json {
        let builder = builder.json().with_filter_reloading();
        let handle = builder.reload_handle();
        builder.init();
        changeable(&args.log, handle)
    } else {
        let builder = builder.with_ansi(stderr().is_terminal()).with_filter_reloading();
        let handle = builder.reload_handle();
        builder.init();
        changeable(&args.log, handle)
    }
}

fn changeable<S: 'static>(current: &str, handle: Handle<EnvFilter, S>) -> LogFilter {
    LogFilter::new(current, move |text| {
        let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse(text);
        let filter = filter.map_err(|error| LogFilterError::Unreadable(error.to_string()))?;
        handle.reload(filter).map_err(|_gone| LogFilterError::Gone)
    })
}

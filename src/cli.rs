//! Subcommands and exit codes: 64 for a command line or configuration that cannot work, 1 for anything else that failed.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use router::config::command_line::{NotUnderstood, Understood, understand};
use telemetry::Observed;
use telemetry::log_filter::LogFilter;
use tokio::runtime::Runtime;

use crate::{core_dumps, demo, doctor, files, gpu, health, logging, parent, shell, stop, top, traces};

const USAGE: u8 = 64;
const GIT_SHA: &str = env!("KVGATE_GIT_SHA");

#[derive(Debug, Parser)]
#[command(name = "kvgate", version = version(), long_version = long_version(), about = "Dispatches decode only after its KV cache has arrived")]
struct Cli {
    #[command(flatten)]
    logging: logging::Args,
    #[command(flatten)]
    traces: traces::Args,
    #[command(flatten)]
    core_dumps: core_dumps::Args,
    /// End with the process that started this one (given by `kvgate demo`).
    #[arg(long, hide = true, global = true, value_name = "PID")]
    end_with_parent: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon beside a vLLM pod
    Sidecar(Box<sidecar::config::Args>),
    /// The OpenAI-compatible prefill/decode router
    Router(Box<router::config::Args>),
    /// An embedded engine that speaks vLLM's HTTP and side channel over real NIXL memory
    Sim(Box<sim::config::Args>),
    /// The whole path on this machine: two pods, two sidecars, a router; checks every text
    Demo(demo::Args),
    /// What breaks prefill/decode in this pod, each line with its fix; exits with 2 when a line says fail
    Doctor(Box<doctor::Args>),
    /// A sidecar or a router in a terminal, as it is now; --once --json for scripts
    Top(top::Args),
    /// Whether a sidecar or router of this machine is alive, by the exit code: for an image's HEALTHCHECK
    Health(health::Args),
    /// A shell's completions, to standard output
    Completions(shell::Completions),
    /// Man pages, one for each subcommand, into a folder
    Man(shell::Man),
}

fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("KVGATE_GIT_SHA"), ")")
}

/// `--version`: what the binary is and was built by.
fn long_version() -> &'static str {
    concat!(
        env!("CARGO_PKG_VERSION"),
        " (",
        env!("KVGATE_GIT_SHA"),
        ")\nbuilt by ",
        env!("KVGATE_RUSTC"),
        " for ",
        env!("KVGATE_TARGET"),
        ", ",
        env!("KVGATE_PROFILE")
    )
}

/// Parses, runs, and says in one line what went wrong.
pub(crate) fn main() -> ExitCode {
    let (cli, understood) = match parse() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    if let Some(pid) = cli.end_with_parent
        && !parent::end_with(pid)
    {
        return ExitCode::FAILURE;
    }
    let log_filter = logging::start(&cli.logging);
    // Before any secret is read.
    if let Err(error) = core_dumps::forbid(&cli.core_dumps) {
        tracing::error!(error = %error, "the kernel does not forbid core files of this process");
        return ExitCode::FAILURE;
    }
    for note in &understood.notes {
        tracing::warn!(note, "check the configuration");
    }
    if let (Some(text), Command::Router(args)) = (&understood.print, &cli.command) {
        return print(text, args);
    }
    if let Command::Sidecar(args) = &cli.command
        && args.check_config
    {
        return ended(args.settings().map(drop));
    }
    match run(cli.command, log_filter, &cli.traces) {
        Ok(code) => code,
        Err((error, code)) => {
            tracing::error!(error = format!("{error:#}"), "kvgate ends with an error");
            ExitCode::from(code)
        }
    }
}

/// The command line as `--help` shows it, with what the router takes from elsewhere.
fn whole() -> clap::Command {
    router::config::command_line::extended(Cli::command())
}

/// The command line with its configuration file, or the code to end with: what is wrong has been said.
fn parse() -> Result<(Cli, Understood), ExitCode> {
    let line: Vec<OsString> = std::env::args_os().collect();
    if let Some(words) = gpu::missing(&Cli::command(), &line, gpu::variable) {
        return Err(refused(&Cli::command().error(clap::error::ErrorKind::InvalidValue, words)));
    }
    let understood = understand(Cli::command(), &line, std::env::vars_os().map(|(name, _)| name));
    let error = match understood {
        Ok(understood) => match Cli::from_arg_matches(&understood.matches) {
            Ok(cli) => return Ok((cli, understood)),
            Err(error) => error,
        },
        Err(NotUnderstood::Flags(error)) => error,
        Err(error @ (NotUnderstood::Peer(_) | NotUnderstood::File { .. })) => {
            let words = format!("{:#}", anyhow::Error::from(error));
            Cli::command().error(clap::error::ErrorKind::InvalidValue, words)
        }
    };
    Err(refused(&error))
}

/// Says why nothing is run, or what was asked for instead.
fn refused(error: &clap::Error) -> ExitCode {
    // The terminal that asked may be gone; there is nobody left to tell.
    drop(error.print());
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

/// `--print-config`, once the configuration has been checked.
fn print(text: &str, args: &router::config::Args) -> ExitCode {
    let checked = args.check().map_err(anyhow::Error::from);
    ended(checked.and_then(|_| Ok(std::io::stdout().write_all(text.as_bytes())?)))
}

/// How a look at the configuration ends.
fn ended(checked: Result<(), impl Into<anyhow::Error>>) -> ExitCode {
    match checked.map_err(Into::into) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "kvgate ends with an error");
            ExitCode::from(USAGE)
        }
    }
}

fn run(command: Command, log_filter: LogFilter, traces: &traces::Args) -> Result<ExitCode, (anyhow::Error, u8)> {
    let runtime = Runtime::new().map_err(|error| (error.into(), 1))?;
    runtime.block_on(async {
        let stop = stop::on_signal().map_err(|error| (error.into(), 1))?;
        match command {
            Command::Sidecar(args) => {
                let (spans, exporter) = traces.start("kvgate-sidecar").map_err(|error| (error.into(), USAGE))?;
                let ended = sidecar::run(*args, GIT_SHA, Observed { log_filter, spans }, stop).await;
                exporter.finish().await;
                ended.map_err(|error| {
                    let code = error.exit_code();
                    (error.into(), code)
                })?;
            }
            Command::Router(args) => {
                files::allow_many();
                let (spans, exporter) = traces.start("kvgate-router").map_err(|error| (error.into(), USAGE))?;
                let ended = router::run(*args, GIT_SHA, Observed { log_filter, spans }, stop).await;
                exporter.finish().await;
                ended.map_err(|error| {
                    let code = error.exit_code();
                    (error.into(), code)
                })?;
            }
            Command::Sim(args) => sim::run(*args, stop).await.map_err(|error| {
                let code = error.exit_code();
                (error.into(), code)
            })?,
            Command::Demo(args) => return demo::run(&args, stop).await.map_err(|error| (error, 1)),
            Command::Doctor(args) => return doctor::run(&args, stop).await.map_err(|error| (error, USAGE)),
            Command::Top(args) => return top::run(&args, stop).await.map_err(|error| (error, 1)),
            Command::Health(args) => return health::run(&args).await.map_err(|error| (error, 1)),
            Command::Completions(args) => return shell::completions(&args, whole()).map_err(|error| (error, 1)),
            Command::Man(args) => return shell::man(&args, whole()).map_err(|error| (error, 1)),
        }
        Ok(ExitCode::SUCCESS)
    })
}

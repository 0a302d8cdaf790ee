//! The command line with what surrounds it: the file of `--config`, `vllm-router`'s flags, and the effective configuration as text.
//!
//! Flags go before the environment, the environment before the file, the file before the defaults. It works on clap's own
//! table of flags, so a flag that any group declares is a key of the file and a line of `--print-config` without more code.

mod effective;
mod environment;
mod file;
mod peer;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::targets::PrefillUrl;
pub use file::FileError;
pub use peer::Refusal;

/// The subcommand whose flags these are; a command without it is the router's own.
const ROUTER: &str = "router";
const CONFIG: &str = "config";
const PRINT: &str = "print-config";

/// A command line that was understood.
#[derive(Debug)]
pub struct Understood {
    /// What clap found, for the derived types.
    pub matches: ArgMatches,
    /// What the operator should know, to be logged as warnings.
    pub notes: Vec<String>,
    /// With `--print-config`: the effective configuration as a TOML file. Holds no secrets.
    pub print: Option<String>,
}

/// Why a command line is not understood.
#[derive(Debug, thiserror::Error)]
pub enum NotUnderstood {
    /// Clap's own words; also `--help` and `--version`.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// A flag of `vllm-router` that has no counterpart.
    #[error(transparent)]
    Peer(#[from] Refusal),
    /// The file of `--config` cannot be used.
    #[error("use the configuration file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FileError,
    },
}

/// Reads a command line, its configuration file included.
///
/// # Errors
/// [`NotUnderstood`], which ends the process with 64 (or 0 for `--help`).
pub fn understand(
    command: Command,
    line: &[OsString],
    environment: impl Iterator<Item = OsString>,
) -> Result<Understood, NotUnderstood> {
    let command = extended(command);
    let first = command.clone().try_get_matches_from(line)?;
    let mut notes = environment::notes(&command, first.subcommand_name(), environment);
    let Some(given) = router_matches(&first) else {
        return Ok(Understood { matches: first, notes, print: None });
    };
    let flags = flags(&command);
    let mut line = line.to_vec();
    line.extend(peer::translate(given)?);
    if let Some(path) = given.get_one::<PathBuf>(CONFIG) {
        let named = |source| NotUnderstood::File { path: path.clone(), source };
        let written = file::read(path).and_then(|text| file::flags(&text, &flags)).map_err(named)?;
        let taken = |flag: &Arg| stands(given, flag) || peer::replaced(given, flag);
        line.extend(written.into_iter().filter(|(flag, _)| !taken(flag)).flat_map(|(_, values)| values));
    }
    let matches = command.try_get_matches_from(&line)?;
    let router = router_matches(&matches).unwrap_or(&matches);
    let print = router.get_flag(PRINT).then(|| effective::toml(&flags, router));
    notes.extend(bootstrap_ports(router));
    Ok(Understood { notes, print, matches })
}

/// The command line's program and subcommand are known to hold the router's flags.
fn router_matches(matches: &ArgMatches) -> Option<&ArgMatches> {
    match matches.subcommand() {
        None => Some(matches),
        Some((ROUTER, router)) => Some(router),
        Some(_) => None,
    }
}

/// A command line, the router's own or one with a subcommand for it, with the flags that are read before all others and the peer's.
pub fn extended(command: Command) -> Command {
    if command.find_subcommand(ROUTER).is_some() {
        return command.mut_subcommand(ROUTER, add_flags);
    }
    add_flags(command)
}

fn add_flags(command: Command) -> Command {
    let file =
        Arg::new(CONFIG).long(CONFIG).env("KVGATE_CONFIG").value_name("FILE").value_parser(value_parser!(PathBuf));
    let file = file.help("TOML file with flags as keys (max_in_flight = 100); flags and KVGATE_… go before it");
    let print = Arg::new(PRINT).long(PRINT).action(ArgAction::SetTrue);
    let print = print.help("Print the effective configuration as a TOML file, without secrets, and end");
    let command = command.mut_args(switch).mut_args(peer::alias);
    peer::add(command.arg(file).arg(print))
}

/// Lets a switch be turned off again: `--flag=false`, for a file or an environment that turns it on.
fn switch(arg: Arg) -> Arg {
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        return arg;
    }
    let arg = arg.action(ArgAction::Set).num_args(0..=1).require_equals(true).default_missing_value("true");
    arg.default_value("false").value_parser(BoolishValueParser::new()).value_name("BOOL").hide_default_value(true)
}

/// The flags that a file may set: the router's own and the program's global ones.
fn flags(command: &Command) -> Vec<Arg> {
    let Some(router) = command.find_subcommand(ROUTER) else { return settable(command).collect() };
    settable(router).chain(settable(command).filter(|arg| arg.is_global_set())).collect()
}

fn settable(command: &Command) -> impl Iterator<Item = Arg> {
    let own = |arg: &&Arg| ![CONFIG, PRINT].contains(&arg.get_id().as_str()) && !peer::is_foreign(arg);
    let about = |arg: &&Arg| !["help", "version"].contains(&arg.get_id().as_str());
    command.get_arguments().filter(|arg| arg.get_long().is_some()).filter(own).filter(about).cloned()
}

/// Whether a flag or the environment has the last word on it.
fn stands(matches: &ArgMatches, flag: &Arg) -> bool {
    let source = matches.value_source(flag.get_id().as_str());
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

fn bootstrap_ports(router: &ArgMatches) -> Option<String> {
    let mut given = router.try_get_many::<PrefillUrl>("prefill").ok().flatten()?;
    let port = given.any(|value| matches!(value, PrefillUrl::BootstrapPort));
    port.then(|| "a bootstrap port after --prefill URL has no effect: NIXL needs none".to_owned())
}

/// The name that is least unlike it, if any is like it at all.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|known| (strsim::jaro_winkler(name, known), known));
    scored.filter(|(score, _)| *score > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// Reads a whole file of the configuration.
fn read(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests;

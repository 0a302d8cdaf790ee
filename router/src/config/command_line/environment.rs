//! `KVGATE_…` variables that nobody reads: a slip of the pen, most likely. They are told, not refused: Kubernetes itself sets
//! such names beside a Service called `kvgate` or `kvgate-…`. What another subcommand reads is known too: the containers of a pod may share
//! one environment.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

use super::nearest;

const PREFIX: &str = "KVGATE_";

/// What is to be told to who runs `subcommand` of a program, or the program itself.
pub(super) fn notes(
    program: &Command,
    subcommand: Option<&str>,
    environment: impl Iterator<Item = OsString>,
) -> Vec<String> {
    let others = program.get_subcommands().flat_map(read_by);
    let known: Vec<&str> = read_by(program).chain(others).collect();
    let runs = subcommand.and_then(|name| program.find_subcommand(name));
    let own: Vec<&str> = read_by(program).chain(runs.into_iter().flat_map(read_by)).collect();
    let names = environment.filter_map(|name| name.into_string().ok());
    let strange = names.filter(|name| name.starts_with(PREFIX) && !known.contains(&name.as_str()));
    let strange = strange.filter(|name| !of_kubernetes(name));
    strange
        .filter_map(|name| {
            // Only what looks like a misspelt one of those that are read here.
            let near = nearest(name.strip_prefix(PREFIX)?, own.iter().filter_map(|own| own.strip_prefix(PREFIX)))?;
            Some(format!("the environment variable {name} is read by nobody; the nearest is {PREFIX}{near}"))
        })
        .collect()
}

fn read_by(command: &Command) -> impl Iterator<Item = &str> {
    command.get_arguments().filter_map(Arg::get_env).filter_map(OsStr::to_str)
}

/// What Kubernetes sets for a Service: `…_SERVICE_HOST`, `…_SERVICE_PORT[_NAME]`, `…_PORT`, `…_PORT_<n>_<PROTOCOL>[_…]`.
fn of_kubernetes(name: &str) -> bool {
    let numbered = |(_, rest): (&str, &str)| rest.starts_with(|first: char| first.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.split_once("_PORT_").is_some_and(numbered)
}

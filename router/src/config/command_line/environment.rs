//! `KVGATE_…` variables that nobody reads: a slip of the pen, most likely. They are told, not refused: Kubernetes itself sets
//! such names beside a Service called `kvgate` or `kvgate-…`, and sidecars may share the router's environment.

use std::ffi::OsString;

use clap::Arg;

use super::nearest;

const PREFIX: &str = "KVGATE_";

pub(super) fn notes(flags: &[Arg], environment: impl Iterator<Item = OsString>) -> Vec<String> {
    let known: Vec<&str> = flags.iter().filter_map(|flag| flag.get_env()?.to_str()).chain(["KVGATE_CONFIG"]).collect();
    let names = environment.filter_map(|name| name.into_string().ok());
    let strange = names.filter(|name| name.starts_with(PREFIX) && !known.contains(&name.as_str()));
    let strange = strange.filter(|name| !of_kubernetes(name));
    strange
        .filter_map(|name| {
            // Only what looks like a misspelt one: a sidecar's variables are none of the router's business.
            let near =
                nearest(name.strip_prefix(PREFIX)?, known.iter().filter_map(|known| known.strip_prefix(PREFIX)))?;
            Some(format!("the environment variable {name} is not one of the router's; the nearest is {PREFIX}{near}"))
        })
        .collect()
}

/// What Kubernetes sets for a Service: `…_SERVICE_HOST`, `…_SERVICE_PORT[_NAME]`, `…_PORT`, `…_PORT_<n>_<PROTOCOL>[_…]`.
fn of_kubernetes(name: &str) -> bool {
    let numbered = |(_, rest): (&str, &str)| rest.starts_with(|first: char| first.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.split_once("_PORT_").is_some_and(numbered)
}

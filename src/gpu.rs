//! A GPU that is asked for and not there is said before anything else about a command line: whatever else is wrong with it, it could not
//! be run here.

use std::ffi::{OsStr, OsString};

use clap::Command;
use cuda::CudaError;

/// What takes a CUDA driver.
struct Need {
    subcommand: &'static str,
    flag: &'static str,
    variable: Option<&'static str>,
    values: &'static [&'static str],
}

const NEEDS: [Need; 4] = [
    Need { subcommand: "sidecar", flag: "--staging", variable: Some("KVGATE_STAGING"), values: &["pinned", "vram"] },
    Need { subcommand: "sim", flag: "--memory", variable: None, values: &["vram"] },
    Need { subcommand: "demo", flag: "--staging", variable: None, values: &["pinned", "vram"] },
    Need { subcommand: "demo", flag: "--memory", variable: None, values: &["vram"] },
];

/// Whoever says one of these wants to know something, not to run it.
const NO_RUN: [&str; 4] = ["-h", "--help", "--version", "--check-config"];

/// What is asked for and why it cannot be had, in words. Takes as long as the driver's start, where one is asked for.
pub(crate) fn missing(
    command: &Command,
    line: &[OsString],
    variable: impl Fn(&str) -> Option<OsString>,
) -> Option<String> {
    let asked = asked(command, line, variable)?;
    cuda::driver().err().map(|error| words(&asked, &error))
}

fn words(asked: &str, error: &CudaError) -> String {
    format!("{asked} needs a GPU: {error} (docs/gpu.md; host memory needs none)")
}

/// The flag, with its value, that takes a driver.
fn asked(command: &Command, line: &[OsString], variable: impl Fn(&str) -> Option<OsString>) -> Option<String> {
    let mut words = line.iter().skip(1).filter_map(|word| word.to_str());
    let subcommand = words.find(|word| command.find_subcommand(word).is_some())?;
    let words: Vec<&str> = words.collect();
    if words.iter().any(|word| NO_RUN.contains(word)) {
        return None;
    }
    NEEDS.iter().filter(|need| need.subcommand == subcommand).find_map(|need| need.named(&words, &variable))
}

impl Need {
    fn named(&self, words: &[&str], variable: impl Fn(&str) -> Option<OsString>) -> Option<String> {
        let wants = |value: &&str| self.values.contains(value);
        let given = words.iter().enumerate().find_map(|(at, word)| match word.strip_prefix(self.flag)? {
            "" => Some(words.get(at + 1).copied().unwrap_or_default()),
            rest => rest.strip_prefix('='),
        });
        match (given, self.variable) {
            (Some(value), _) => Some(value).filter(wants).map(|value| format!("{} {value}", self.flag)),
            (None, Some(name)) => {
                let value = variable(name)?;
                value.to_str().filter(wants).map(|value| format!("{name}={value}"))
            }
            (None, None) => None,
        }
    }
}

/// The process's own variable; a value that is not UTF-8 is none that is looked for.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(OsStr::new(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str, set: Option<&str>) -> Option<String> {
        let command = Command::new("kvgate").subcommands(["sidecar", "router", "sim", "demo", "man"].map(Command::new));
        let line: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        asked(&command, &line, |name| set.filter(|_| name == "KVGATE_STAGING").map(OsString::from))
    }

    #[test]
    fn what_takes_a_gpu_is_seen_whatever_else_is_on_the_line() {
        for (line, said) in [
            ("kvgate sidecar --staging vram", "--staging vram"),
            ("kvgate --log-format text sidecar --no-such-flag --staging=pinned --role", "--staging pinned"),
            ("kvgate sim --memory vram --num-blocks 0", "--memory vram"),
            ("kvgate demo --staging vram --memory vram", "--staging vram"),
            ("kvgate demo --memory vram", "--memory vram"),
        ] {
            assert_eq!(of(line, None).as_deref(), Some(said), "{line}");
        }
        assert_eq!(of("kvgate sidecar --role x", Some("vram")).as_deref(), Some("KVGATE_STAGING=vram"));
    }

    #[test]
    fn the_rest_takes_none() {
        for line in [
            "kvgate",
            "kvgate sidecar",
            "kvgate sidecar --staging",
            "kvgate sidecar --staging dram",
            "kvgate sidecar --staging vram --check-config",
            "kvgate sidecar --staging vram --help",
            "kvgate sim --memory dram --staging vram",
            "kvgate router --staging vram",
            "kvgate man sidecar --staging vram",
        ] {
            assert_eq!(of(line, None), None, "{line}");
        }
        assert_eq!(of("kvgate sidecar --staging dram", Some("vram")), None, "the flag counts more");
        assert_eq!(of("kvgate sim", Some("vram")), None);
    }
}

//! `vllm-router`'s flags: taken under their own names where they mean what ours mean, refused in words where not.

mod table;

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command};

pub(super) use table::{FLAGS, Verdict};

/// Ids of the flags that are only there to be translated or refused.
const FOREIGN: &str = "vllm-router:";

/// A flag of `vllm-router` that kvgate does not take.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{flag} is a flag of vllm-router that kvgate does not take: {words}")]
pub struct Refusal {
    /// The flag, with its dashes.
    pub flag: String,
    /// What serves instead, or why there is nothing.
    pub words: String,
}

/// One line of the table.
#[derive(Debug)]
pub(super) struct PeerFlag {
    /// Without dashes.
    pub(super) flag: &'static str,
    pub(super) verdict: Verdict,
    pub(super) words: &'static str,
}

impl PeerFlag {
    fn id(&self) -> String {
        format!("{FOREIGN}{}", self.flag)
    }
}

/// Gives a flag of ours its other name.
pub(super) fn alias(arg: Arg) -> Arg {
    let ours = arg.get_long().map(str::to_owned);
    let named =
        |line: &&PeerFlag| matches!(line.verdict, Verdict::Renamed { ours: name } if Some(name) == ours.as_deref());
    let known = |line: &&PeerFlag| !arg.get_all_aliases().unwrap_or_default().contains(&line.flag);
    let aliases: Vec<&'static str> = FLAGS.iter().filter(named).filter(known).map(|line| line.flag).collect();
    arg.aliases(aliases)
}

/// Declares what has to be translated or refused.
pub(super) fn add(command: Command) -> Command {
    let declared = |command: &Command, flag: &str| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(flag) || arg.get_all_aliases().unwrap_or_default().contains(&flag))
    };
    FLAGS.iter().fold(command, |command, line| {
        if declared(&command, line.flag) {
            return command;
        }
        let arg = Arg::new(line.id()).long(line.flag).hide(true).action(ArgAction::Append);
        let arg = match line.verdict {
            Verdict::Same | Verdict::Renamed { .. } => return command,
            Verdict::Scaled { .. } => arg.num_args(1).value_parser(clap::value_parser!(u64)),
            Verdict::Worded { .. } | Verdict::Only { .. } => arg.num_args(1),
            Verdict::Sets { .. } => arg.num_args(0).action(ArgAction::SetTrue),
            Verdict::Refused => arg.num_args(0..),
        };
        command.arg(arg)
    })
}

pub(super) fn is_foreign(arg: &Arg) -> bool {
    arg.get_id().as_str().starts_with(FOREIGN)
}

/// Whether a flag of the peer already says what this one of ours would.
pub(super) fn replaced(given: &ArgMatches, flag: &Arg) -> bool {
    FLAGS
        .iter()
        .any(|line| line.verdict.ours().is_some_and(|ours| Some(ours) == flag.get_long()) && is_given(given, line))
}

fn is_given(given: &ArgMatches, line: &PeerFlag) -> bool {
    let id = line.id();
    given.ids().any(|known| known.as_str() == id)
        && given.value_source(&id) == Some(clap::parser::ValueSource::CommandLine)
}

/// Our flags for the peer's.
pub(super) fn translate(given: &ArgMatches) -> Result<Vec<OsString>, Refusal> {
    let mut ours = Vec::new();
    for line in FLAGS.iter().filter(|line| is_given(given, line)) {
        let refused = |words: String| Refusal { flag: format!("--{}", line.flag), words };
        let text = || given.get_one::<String>(&line.id()).map_or("", String::as_str);
        match line.verdict {
            Verdict::Same | Verdict::Renamed { .. } => {}
            Verdict::Scaled { ours: flag, by } => {
                let value = given.get_one::<u64>(&line.id()).copied().unwrap_or_default();
                ours.push(format!("--{flag}={}", value.saturating_mul(by)).into());
            }
            Verdict::Worded { ours: flag, words } => {
                let Some((_, value)) = words.iter().find(|(theirs, _)| *theirs == text()) else {
                    let known: Vec<&str> = words.iter().map(|(theirs, _)| *theirs).collect();
                    return Err(refused(format!("{:?} is not one of {}", text(), known.join(", "))));
                };
                ours.push(format!("--{flag}={value}").into());
            }
            Verdict::Sets { ours: flag, value } => ours.push(format!("--{flag}={value}").into()),
            Verdict::Only { value } if value == text() => {}
            Verdict::Only { .. } | Verdict::Refused => return Err(refused(line.words.to_owned())),
        }
    }
    Ok(ours)
}

//! Who is there: the pods of a side as Kubernetes' API or DNS tells them, as they come and go.
//!
//! | module | is |
//! |---|---|
//! | [`kubernetes`] | pods by label selector: a list, a watch, and a list again after every break |
//! | [`dns`] | the addresses of a name, asked for again and again |
//! | `tally` | how it goes, in figures |
//!
//! Both publish the whole truth each time, never a change: whoever follows cannot miss one. While nobody answers, what was seen last
//! stands, since a cluster whose API is away still serves.
#![forbid(unsafe_code)]

pub mod dns;
pub mod kubernetes;
mod tally;

use std::net::IpAddr;

pub use tally::{Publisher, Tally};

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// No other pod ever has it, not even one of the same name.
    pub key: String,
    /// Where it is.
    pub address: IpAddr,
    /// It has been told to end: no new work.
    pub leaving: bool,
}

/// What is known at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The pods, in the order of their keys.
    pub pods: Vec<Found>,
    /// Somebody has answered at least once.
    pub heard: bool,
    /// Why nobody answers now; the pods are those of the last answer.
    pub trouble: Option<String>,
}

impl Seen {
    fn of(mut pods: Vec<Found>) -> Self {
        pods.sort();
        Self { pods, heard: true, trouble: None }
    }
}

/// An error with all its causes, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

//! What happened, written down where it happened, and what must not have.
//!
//! The oracles: `handoff` (invariants G, L, N and I), `bodies` (B), `memory` (S; panics are `run`'s to find), the fabric (M), the client
//! (liveness, texts, leaks). Each has a bad history in `tests`, which it must find.

mod bodies;
mod handoff;
mod memory;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::workload::Ended;
pub use bodies::{AnswerId, Leg};
pub use handoff::VirtualRequest;
pub(crate) use handoff::virtual_request;
pub use memory::peak_mib;

/// A kind of fault, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Two hosts cannot reach one another, or one not the other.
    Partition,
    /// A link takes its time.
    SlowLink,
    /// A process does nothing for a while.
    Stall,
    /// A process dies.
    Crash,
    /// A process is told to end.
    Drain,
    /// A read fails, hangs, or lands late.
    Read,
    /// A notification is lost, refused, or comes twice.
    Note,
    /// Somebody sends what no honest peer sends.
    Junk,
}

impl Mark {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::SlowLink => "slow link",
            Self::Stall => "stall",
            Self::Crash => "crash",
            Self::Drain => "drain",
            Self::Read => "read",
            Self::Note => "notification",
            Self::Junk => "junk",
        }
    }
}

/// The record of one run. Clones are the same record.
#[derive(Clone, Debug, Default)]
pub struct Evidence(Arc<Mutex<Record>>);

/// See [`Evidence`].
#[derive(Debug, Default)]
pub struct Record {
    /// What happened, in order.
    pub log: Vec<String>,
    /// Promises that were broken.
    pub broken: Vec<String>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Decodes that asked for remote KV.
    pub decodes: u64,
    /// Those that no receipt covers.
    pub without_receipt: u64,
    handoff: handoff::Handoff,
    bodies: bodies::Bodies,
    memory: memory::Registered,
    now: Duration,
}

impl Evidence {
    /// The time, for those who have no clock.
    pub fn now(&self, now: Duration) {
        self.0.lock().now = now;
    }

    /// Writes down what happened.
    pub fn note(&self, text: impl FnOnce() -> String) {
        self.0.lock().write(&text());
    }

    /// Writes down a fault and counts it.
    pub fn fault(&self, mark: Mark, text: impl FnOnce() -> String) {
        let mut record = self.0.lock();
        *record.faults.entry(mark.word()).or_default() += 1;
        record.write(&format!("fault: {}: {}", mark.word(), text()));
    }

    /// A promise is broken.
    pub fn broken(&self, which: &str, how: impl Into<String>) {
        self.0.lock().broken(which, &how.into());
    }

    /// A request has ended: with another text than it should have, not at all, or well.
    pub fn ended(&self, tag: &str, ended: &Ended) {
        match ended {
            Ended::Right | Ended::Error(_) | Ended::Left => self.note(|| format!("request {tag}: {ended:?}")),
            Ended::Wrong(_) => self.broken("text", format!("request {tag}: {ended:?}")),
            Ended::Hung => self.broken("liveness", format!("request {tag} has not ended")),
        }
    }

    /// Looks at the record.
    pub fn with<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&self.0.lock())
    }
}

impl Record {
    fn time(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or(self.now)
    }

    fn write(&mut self, text: &str) {
        let line = format!("{:>6} ms  {text}", self.time().as_millis());
        self.log.push(line);
    }

    fn broken(&mut self, which: &str, how: &str) {
        let text = format!("BROKEN {which}: {how}");
        self.write(&text);
        self.broken.push(text);
    }
}

//! Who may write where: from a read's post until it has ended well, or its agent is gone.

use std::collections::BTreeMap;

use nixl::{AgentName, LocalDescs};

use crate::hosts::Host;

/// All reads whose target is not known to be quiet.
#[derive(Debug, Default)]
pub(super) struct Writes {
    next: u64,
    open: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    host: Host,
    agent: AgentName,
    /// Addresses, half open.
    ranges: Vec<(u64, u64)>,
}

impl Writes {
    /// A read is posted; whether an earlier one may still write to the same bytes.
    pub(super) fn begin(&mut self, host: Host, agent: &AgentName, into: &LocalDescs) -> (u64, bool) {
        let base = into.region().base();
        let ranges: Vec<_> = into.entries().iter().map(|&(at, len)| (base + at, base + at + len)).collect();
        let meets = |open: &Open| open.ranges.iter().any(|theirs| ranges.iter().any(|ours| overlap(*theirs, *ours)));
        let disturbed = self.open.values().any(meets);
        self.next += 1;
        self.open.insert(self.next, Open { host, agent: agent.clone(), ranges });
        (self.next, disturbed)
    }

    /// It has ended, and nothing of it is on its way any more.
    pub(super) fn quiet(&mut self, write: u64) {
        self.open.remove(&write);
    }

    /// An agent has been destroyed.
    pub(super) fn destroyed(&mut self, agent: &AgentName) {
        self.open.retain(|_, open| open.agent != *agent);
    }

    /// A process has died.
    pub(super) fn forget(&mut self, host: Host) {
        self.open.retain(|_, open| open.host != host);
    }
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

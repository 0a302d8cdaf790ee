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
    /// A read is posted; who may still write to the same bytes, by an earlier one.
    pub(super) fn begin(&mut self, host: Host, agent: &AgentName, into: &LocalDescs) -> (u64, Option<String>) {
        let base = into.region().base();
        let ranges: Vec<_> = into.entries().iter().map(|&(at, len)| (base + at, base + at + len)).collect();
        let meets = |open: &Open| open.ranges.iter().any(|theirs| ranges.iter().any(|ours| overlap(*theirs, *ours)));
        let disturbed =
            self.open.values().find(|open| meets(open)).map(|open| format!("{} ({})", open.host, open.agent));
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

#[cfg(test)]
mod tests {
    use nixl::loopback::LoopbackNet;
    use nixl::{Fabric as _, HugePages, Memory};

    use super::*;

    /// The oracle of invariant M.
    #[tokio::test]
    async fn a_read_into_memory_that_is_not_quiet_is_found_out() {
        let (net, host) = (LoopbackNet::new(), Host::DecodeSidecar(0));
        let name = AgentName::new("pull").unwrap();
        let agent = net.agent(name.clone());
        let region = agent.register(Memory::host(4096, HugePages::Off).unwrap()).await.unwrap();
        let slots = |range: [u64; 2]| LocalDescs::new(&region, [(range[0], range[1])]).unwrap();
        let mut writes = Writes::default();
        let (first, disturbed) = writes.begin(host, &name, &slots([0, 512]));
        assert_eq!(disturbed, None);
        assert_eq!(writes.begin(host, &name, &slots([512, 512])).1, None, "its neighbour is another's");
        assert!(writes.begin(host, &name, &slots([256, 512])).1.is_some(), "the first may still write");
        writes.destroyed(&name);
        let (second, disturbed) = writes.begin(host, &name, &slots([256, 512]));
        assert_eq!(disturbed, None, "nobody is left who could");
        writes.quiet(second);
        writes.quiet(first);
        assert_eq!(writes.begin(host, &name, &slots([0, 1024])).1, None, "it has ended");
    }
}

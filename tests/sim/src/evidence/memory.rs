//! What processes hold: the part of invariant S that is not about panics.

use std::collections::{BTreeMap, BTreeSet};

use nixl::AgentName;

use super::Evidence;
use crate::hosts::Host;
use crate::setup::RANKS;

/// What the sidecar of a prefill pod may hold for each rank to digest its engine's blocks.
const DIGESTING: u64 = 8 << 20;

/// Memory that agents may reach.
#[derive(Debug, Default)]
pub(super) struct Registered {
    /// What the sidecar of a decode pod is configured to hold, in bytes.
    limit: u64,
    /// By host and place (address, length): by which agents.
    places: BTreeMap<Host, BTreeMap<(u64, u64), BTreeSet<AgentName>>>,
}

impl Registered {
    fn held(&self, host: Host) -> u64 {
        self.places.get(&host).into_iter().flatten().map(|((_, length), _)| length).sum()
    }
}

impl Evidence {
    /// The most bytes that the agents of a decode pod's sidecar may reach.
    pub fn staging(&self, limit: u64) {
        self.0.lock().memory.limit = limit;
    }

    /// An agent may reach memory; the same may be reached by several.
    pub fn registered(&self, host: Host, agent: &AgentName, (address, length): (u64, u64)) {
        let mut record = self.0.lock();
        let places = record.memory.places.entry(host).or_default();
        places.entry((address, length)).or_default().insert(agent.clone());
        let limit = match host {
            Host::DecodeSidecar(_) => record.memory.limit,
            Host::PrefillSidecar(_) => DIGESTING * u64::from(RANKS),
            Host::Router | Host::PrefillEngine(_) | Host::DecodeEngine(_) | Host::Client | Host::Reference => return,
        };
        let held = record.memory.held(host);
        if held > limit {
            record.broken("S", &format!("{host} holds {held} bytes of staging, {limit} are configured"));
        }
    }

    /// An agent is no more.
    pub fn unregistered(&self, agent: &AgentName) {
        for places in self.0.lock().memory.places.values_mut() {
            places.retain(|_, agents| {
                agents.remove(agent);
                !agents.is_empty()
            });
        }
    }

    /// A process is no more.
    pub fn died(&self, host: Host) {
        self.0.lock().memory.places.remove(&host);
    }
}

/// The most that this process has held so far, in MiB; nothing where the system does not say.
pub fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib.div_ceil(1024))
}

//! The NIXL agents that are in use, for `/livez`: each one's thread must live and get round.

use std::sync::{Arc, Weak};
use std::time::Duration;

use nixl::{Closed, Fabric, FabricError};
use parking_lot::Mutex;

/// An agent's thread that has been in one call for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// All agents of a pod, whoever made them. Clones are handles to the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Agents(Arc<Mutex<Watched>>);

#[derive(Debug, Default)]
struct Watched {
    /// An agent that everybody has dropped is not in use any more.
    in_use: Vec<Weak<dyn Fabric>>,
    /// They could not be destroyed.
    stuck: Vec<Arc<dyn Fabric>>,
}

impl Agents {
    /// From now on this one must be well.
    pub(crate) fn watch(&self, agent: &Arc<dyn Fabric>) {
        let mut watched = self.0.lock();
        watched.in_use.retain(|known| known.strong_count() > 0);
        watched.in_use.push(Arc::downgrade(agent));
    }

    /// Closes agents, each within `within`; the worst end of all. What is being closed need not be well; what cannot be destroyed is
    /// watched on, and its memory stays pinned.
    pub(crate) async fn close(&self, agents: Vec<Arc<dyn Fabric>>, within: Duration) -> Closed {
        self.forget(&agents);
        // Once the agent itself has used up its time, it is given a little more to say so.
        let patience = within.saturating_add(Duration::from_secs(2));
        let closing: Vec<_> = agents.iter().map(|agent| agent.close(within)).collect();
        let mut worst = Closed::Quiet;
        for (closing, agent) in closing.into_iter().zip(agents) {
            let closed = match tokio::time::timeout(patience, closing).await {
                Ok(Ok(closed)) => closed,
                Ok(Err(FabricError::Closed)) => Closed::Quiet,
                Ok(Err(_)) | Err(_) => Closed::Stuck,
            };
            if closed == Closed::Stuck {
                tracing::error!(agent = %agent.name(), "NIXL agent could not be destroyed, its memory stays pinned");
                self.0.lock().stuck.push(agent);
            }
            worst = match (worst, closed) {
                (Closed::Stuck, _) | (_, Closed::Stuck) => Closed::Stuck,
                (Closed::Destroyed, _) | (_, Closed::Destroyed) => Closed::Destroyed,
                (Closed::Quiet, Closed::Quiet) => Closed::Quiet,
            };
        }
        worst
    }

    /// Whether all of them live and get round.
    pub(crate) fn are_well(&self) -> bool {
        let watched = self.0.lock();
        let in_use = watched.in_use.iter().filter_map(Weak::upgrade);
        in_use.chain(watched.stuck.iter().cloned()).all(|agent| {
            let stats = agent.stats();
            stats.alive && stats.lap.is_none_or(|lap| lap < STUCK_AFTER)
        })
    }

    fn forget(&self, agents: &[Arc<dyn Fabric>]) {
        let is =
            |known: &Weak<dyn Fabric>, agent: &Arc<dyn Fabric>| std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(agent));
        self.0.lock().in_use.retain(|known| !agents.iter().any(|agent| is(known, agent)));
    }
}

#[cfg(test)]
mod tests {
    use nixl::AgentName;
    use nixl::loopback::LoopbackNet;

    use super::*;

    #[tokio::test]
    async fn an_agent_must_be_well_until_it_is_closed_or_dropped() {
        let (agents, net) = (Agents::default(), LoopbackNet::new());
        let made = |name: &str| -> Arc<dyn Fabric> {
            let agent: Arc<dyn Fabric> = net.agent(AgentName::new(name).unwrap());
            agents.watch(&agent);
            agent
        };
        let (one, two, three) = (made("one"), made("two"), made("three"));
        assert!(agents.are_well());
        two.close(Duration::ZERO).await.unwrap();
        assert!(!agents.are_well(), "it has ended behind everyone's back");
        drop(two);
        assert!(agents.are_well());
        assert_eq!(agents.close(vec![Arc::clone(&one)], Duration::ZERO).await, Closed::Quiet);
        assert!(agents.are_well(), "that one was meant to end");
        drop(one);
        three.close(Duration::ZERO).await.unwrap();
        assert!(!agents.are_well());
    }
}

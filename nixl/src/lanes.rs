//! Two agents over the same memory, for reads that a thread copies.
//!
//! On one host UCX reads another process's memory by system calls that copy within `post`: one core's work, half of it looking up the
//! source's 4 KiB pages. Two threads do it in half the time (docs/benchmarks.md). So once a large read has spent its time in its post, a
//! second agent is started, and large reads from that peer are cut into pieces while a core is free for it: each agent takes the next
//! piece when it has done one, so that a core which others use too takes less. Where a NIC or a socket moves the bytes, nothing of that
//! happens and there is one agent.
//!
//! To whoever uses it, it is one [`Fabric`]: a read has ended when all pieces that were begun have; its memory is quiet when it is for all
//! of them; closing it closes both agents.

mod cores;
mod pieces;
mod second;
mod turn;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use nixl_sys::Api;
use tokio::sync::mpsc;

pub use cores::Cores;

use crate::{
    agent::{Agent, AgentConfig, AgentError},
    error::{DescError, FabricError},
    fabric::{Attention, Closed, Fabric, FabricStats, Notification, Read, Reading},
    memory::Memory,
    name::AgentName,
    pending::Pending,
    region::{Owner, Region},
};
use pieces::{Ended, Pieces};
use second::{Registered, Second, Way};

/// Smaller reads are not cut: waking the second thread costs some of what it saves.
pub const LARGE: u64 = 4 << 20;

/// Starts the second agent; none when that fails.
pub type StartSecond = Box<dyn Fn() -> Option<Arc<dyn Fabric>> + Send + Sync>;

/// One fabric over one or two agents.
pub struct Lanes {
    main: Arc<dyn Fabric>,
    second: Arc<Second>,
    owner: Owner,
    cores: Arc<Cores>,
}

impl Lanes {
    /// Over a first agent that has no memory and no peers yet.
    #[must_use]
    pub fn new(main: Arc<dyn Fabric>, second: StartSecond, cores: Arc<Cores>) -> Arc<Self> {
        Arc::new(Self { main, second: Second::new(second), owner: Owner::next(), cores })
    }

    /// Over a NIXL agent made of `config`; the second one is called the same with `-2`. Blocks as [`Agent::start`] does.
    ///
    /// # Errors
    /// When NIXL cannot make the first one.
    pub fn start(api: &'static Api, config: AgentConfig, cores: Arc<Cores>) -> Result<Arc<Self>, AgentError> {
        let main = Agent::start(api, config.clone())?;
        let second = move || {
            let name = AgentName::new(format!("{}-2", config.name)).ok()?;
            Some(Agent::start(api, AgentConfig { name, ..config.clone() }).ok()? as Arc<dyn Fabric>)
        };
        Ok(Self::new(main, Box::new(second), cores))
    }

    /// How many agents there are now: one or two.
    #[must_use]
    pub fn agents(&self) -> usize {
        1 + usize::from(self.second.stats().is_some())
    }

    fn whole(&self, read: Read, main: &Region) -> Reading {
        self.main.read(Read { local: read.local.within(main), ..read })
    }

    /// In one part, which shows who copies the bytes.
    fn to_learn(&self, read: Read, main: &Region) -> Reading {
        let (second, core, peer) = (Arc::clone(&self.second), self.cores.take(1), read.peer.clone());
        let reading = self.whole(read, main);
        let done = Pending::of(async move {
            let done = reading.done.await;
            drop(core);
            if let Ok(done) = &done {
                second.learn(&peer, copied_by_its_thread(done.post, done.wire));
            }
            done
        });
        Reading { posted: reading.posted, done }
    }

    /// In pieces, if a core is free for the second agent.
    fn cut(&self, read: &Read, main: &Region, agent: &Arc<dyn Fabric>, other: &Region) -> Option<Reading> {
        let cores = self.cores.take(2);
        if cores.count() < 2 {
            return None;
        }
        let (answer, done) = Pending::pair();
        let (second, peer) = (Arc::clone(&self.second), read.peer.clone());
        let end = move |ended: Ended| {
            drop(cores);
            if ended.refused {
                second.refused(&peer);
            } else if ended.done.is_ok() {
                let (post, wire) = ended.post_and_wire;
                second.learn(&peer, copied_by_its_thread(post, wire));
            }
            answer.send(ended.done);
        };
        let posted = Pieces::begin(read, (&self.main, main), (agent, other), Box::new(end))?;
        Some(Reading { posted, done })
    }
}

/// Whether three quarters of the time were spent in the post.
fn copied_by_its_thread(post: Duration, wire: Duration) -> bool {
    post.saturating_mul(4) >= wire.saturating_mul(3)
}

fn worse(one: Closed, two: Closed) -> Closed {
    match (one, two) {
        (Closed::Stuck, _) | (_, Closed::Stuck) => Closed::Stuck,
        (Closed::Destroyed, _) | (_, Closed::Destroyed) => Closed::Destroyed,
        (Closed::Quiet, Closed::Quiet) => Closed::Quiet,
    }
}

impl Fabric for Lanes {
    fn name(&self) -> &AgentName {
        self.main.name()
    }

    fn register(&self, memory: Memory) -> Pending<Region> {
        let (owner, second) = (self.owner, Arc::clone(&self.second));
        let registering = self.main.register(memory.clone());
        Pending::of(async move {
            let parts = second.registered(registering.await?).await;
            Ok(Region::new(owner, memory, Registered(parts)))
        })
    }

    fn local_metadata(&self) -> Pending<Bytes> {
        self.main.local_metadata()
    }

    fn load_peer(&self, metadata: Bytes) -> Pending<AgentName> {
        let second = Arc::clone(&self.second);
        let loading = self.main.load_peer(metadata.clone());
        Pending::of(async move {
            let peer = loading.await?;
            second.loaded(&peer, metadata);
            Ok(peer)
        })
    }

    fn forget_peer(&self, peer: AgentName) -> Pending<()> {
        let other = self.second.forget(&peer);
        let forgetting = self.main.forget_peer(peer);
        let Some(other) = other else { return forgetting };
        Pending::of(async move {
            let (one, two) = (forgetting.await, other.await);
            match two {
                // It has refused to load the peer.
                Err(FabricError::UnknownPeer(_)) => one,
                Ok(()) | Err(_) => one.and(two),
            }
        })
    }

    fn read(&self, read: Read) -> Reading {
        let region = read.local.region().clone();
        let Some((main, other)) = region.parts().filter(|_| region.owner() == self.owner) else {
            let foreign = FabricError::Descs(DescError::ForeignRegion);
            return Reading { posted: Pending::ready(Err(foreign.clone())), done: Pending::ready(Err(foreign)) };
        };
        if read.local.bytes() < LARGE || read.notify.is_some() || !self.cores.several() {
            return self.whole(read, main);
        }
        match (self.second.way(&read.peer), other) {
            (Way::Whole, _) => self.whole(read, main),
            (Way::Cut(agent), Some(other)) => {
                self.cut(&read, main, &agent, other).unwrap_or_else(|| self.to_learn(read, main))
            }
            (Way::ToLearn, _) | (Way::Cut(_), None) => self.to_learn(read, main),
        }
    }

    fn notify(&self, peer: AgentName, message: Bytes) -> Pending<()> {
        self.main.notify(peer, message)
    }

    fn take_notifications(&self) -> Option<mpsc::Receiver<Notification>> {
        self.main.take_notifications()
    }

    fn attention(&self, attention: Attention) {
        self.main.attention(attention);
    }

    fn stats(&self) -> FabricStats {
        let one = self.main.stats();
        let Some(two) = self.second.stats() else { return one };
        FabricStats {
            alive: one.alive && two.alive,
            queued: one.queued + two.queued,
            in_flight: one.in_flight + two.in_flight,
            in_flight_bytes: one.in_flight_bytes.saturating_add(two.in_flight_bytes),
            buried: one.buried + two.buried,
            buried_bytes: one.buried_bytes.saturating_add(two.buried_bytes),
            failed_cleanups: one.failed_cleanups + two.failed_cleanups,
            notifications_waiting: one.notifications_waiting,
            lap: one.lap.max(two.lap),
        }
    }

    fn close(&self, deadline: Duration) -> Pending<Closed> {
        let other = self.second.close(deadline);
        let closing = self.main.close(deadline);
        let Some(other) = other else { return closing };
        Pending::of(async move {
            let (one, two) = (closing.await, other.await);
            Ok(worse(one?, two?))
        })
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").field("main", &self.main).field("agents", &self.agents()).finish_non_exhaustive()
    }
}

//! All pods, as they come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use http::Uri;
use kv::ids::LocalRank;
use parking_lot::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Pod, PodId, RankView, Side, Target};
use crate::breaker::Tuning;

/// Tokens that a request is taken to cost before any is known.
const TYPICAL: u32 = 512;

/// A pod to be added.
#[derive(Clone, Debug)]
pub(crate) struct PodSpec {
    pub(crate) side: Side,
    pub(crate) engine: Uri,
    pub(crate) sidecar: Option<Uri>,
    pub(crate) ranks: u16,
}

/// The pods at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fleet {
    prefill: Vec<Arc<Pod>>,
    decode: Vec<Arc<Pod>>,
}

impl Fleet {
    pub(crate) fn side(&self, side: Side) -> &[Arc<Pod>] {
        match side {
            Side::Prefill => &self.prefill,
            Side::Decode => &self.decode,
        }
    }

    fn side_mut(&mut self, side: Side) -> &mut Vec<Arc<Pod>> {
        match side {
            Side::Prefill => &mut self.prefill,
            Side::Decode => &mut self.decode,
        }
    }
}

/// A rank with what is known of it, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) target: Target,
    pub(crate) view: RankView,
    pub(crate) occupied: u32,
}

/// The engine is on that side already.
#[derive(Debug, thiserror::Error)]
#[error("the engine is {0} already")]
pub(crate) struct AlreadyThere(pub(crate) PodId);

/// All pods with what is known of them.
#[derive(Debug)]
pub(crate) struct Board {
    fleet: RwLock<Arc<Fleet>>,
    added: [AtomicUsize; 2],
    tuning: Tuning,
    stop: CancellationToken,
    started: Instant,
    typical: AtomicU32,
}

impl Board {
    /// A board without pods. `stop` ends all watchers.
    pub(crate) fn new(tuning: Tuning, stop: CancellationToken) -> Self {
        Self {
            fleet: RwLock::default(),
            added: Default::default(),
            tuning,
            stop,
            started: Instant::now(),
            typical: AtomicU32::new(TYPICAL),
        }
    }

    /// Adds a pod, none of its ranks ready. Its watcher is the caller's to start.
    pub(crate) fn add(&self, spec: PodSpec) -> Result<Arc<Pod>, AlreadyThere> {
        let side = spec.side;
        let mut fleet = self.fleet.write();
        if let Some(there) = fleet.side(side).iter().find(|pod| pod.engine == spec.engine) {
            return Err(AlreadyThere(there.id));
        }
        let [prefill, decode] = &self.added;
        let added = if side == Side::Prefill { prefill } else { decode };
        let id = PodId { side, index: added.fetch_add(1, Ordering::Relaxed) };
        let pod = Arc::new(Pod::new(id, spec, self.tuning, self.stop.child_token(), self.started));
        Arc::make_mut(&mut fleet).side_mut(side).push(Arc::clone(&pod));
        Ok(pod)
    }

    /// Takes a pod off the board and ends its watcher. Requests that are under way there go on.
    pub(crate) fn remove(&self, id: PodId) -> Option<Arc<Pod>> {
        let mut fleet = self.fleet.write();
        let at = fleet.side(id.side).iter().position(|pod| pod.id == id)?;
        let pod = Arc::make_mut(&mut fleet).side_mut(id.side).remove(at);
        pod.stop.cancel();
        Some(pod)
    }

    /// The pods now.
    pub(crate) fn fleet(&self) -> Arc<Fleet> {
        Arc::clone(&self.fleet.read())
    }

    /// All pods, prefill first, each side in the order of its numbers.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        let fleet = self.fleet();
        fleet.prefill.iter().chain(&fleet.decode).cloned().collect()
    }

    /// Every rank of one side, ready or not.
    pub(crate) fn ranks(&self, side: Side) -> Vec<Candidate> {
        let mut all = Vec::new();
        for pod in self.fleet().side(side) {
            for (local, rank) in (0..).map(LocalRank).zip(&pod.ranks) {
                let view = rank.view();
                let target = Target { pod: Arc::clone(pod), local, rank: view.rank, tokens: 0 };
                all.push(Candidate { target, view, occupied: rank.in_flight() });
            }
        }
        all
    }

    /// Why not all ranks of a side's pods that are meant take requests: names and states without addresses, for clients; bounded.
    pub(crate) fn why_not_ready(&self, side: Side, meant: impl Fn(PodId) -> bool) -> String {
        const NAMED: usize = 16;
        let now = self.now_ms();
        let mut words = Vec::new();
        let mut more = 0_usize;
        for Candidate { target, view, .. } in self.ranks(side).into_iter().filter(|rank| meant(rank.target.pod.id)) {
            let state = match target.rank() {
                Some(_) if !view.ready => view.state.as_str(),
                Some(rank) if target.pod.is_draining() || rank.is_draining() => "drained by an operator",
                Some(rank) if !rank.breaker.admits(now) || !target.pod.breaker.admits(now) => {
                    "left alone after failures"
                }
                Some(_) | None => continue,
            };
            if words.len() < NAMED {
                words.push(format!("{} is {state}", target.id()));
            } else {
                more += 1;
            }
        }
        if more > 0 {
            words.push(format!("and {more} more"));
        }
        words.join(", ")
    }

    /// Milliseconds since the router started: the breakers' clock.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Tokens that a request costs, as a moving average.
    pub(crate) fn typical(&self) -> u32 {
        self.typical.load(Ordering::Relaxed)
    }

    /// Takes one request's tokens into the average. Two at a time may lose one, which an average can bear.
    pub(crate) fn learn_typical(&self, tokens: u32) {
        let (old, new) = (u64::from(self.typical()), u64::from(tokens));
        let average = (old * 15 + new).div_ceil(16);
        self.typical.store(u32::try_from(average).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

//! Where requests can go: pods, their ranks, and what each pod's watcher last said of them.
//!
//! One watcher task per pod owns that pod's view ([`PodView`]) and publishes it whole on a `watch`; everybody else reads.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::Uri;
use kv::ids::{DpRank, LocalRank};
use tokio::sync::watch;

/// What a pod's engines do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Prefill,
    Decode,
}

impl Side {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// A pod, by its place on the command line. Its display form holds no address: it may go to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodId {
    pub(crate) side: Side,
    pub(crate) index: usize,
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.side.as_str(), self.index)
    }
}

/// One rank of one pod, numbered within the pod: `decode-0@3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TargetId {
    pub(crate) pod: PodId,
    pub(crate) local: LocalRank,
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pod, self.local)
    }
}

/// One pod and what is needed to speak to it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: PodId,
    pub(crate) engine: Uri,
    /// `None` with the direct gate, which speaks to no sidecar.
    pub(crate) sidecar: Option<Uri>,
    /// Requests that this router has under way, per local rank.
    seats: Vec<Arc<AtomicU32>>,
}

impl Pod {
    /// How many ranks it has.
    pub(crate) fn ranks(&self) -> usize {
        self.seats.len()
    }
}

/// A rank that a request was given: the pod, its number there and its number in the deployment.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) pod: Arc<Pod>,
    pub(crate) local: LocalRank,
    pub(crate) rank: DpRank,
}

impl Target {
    pub(crate) fn id(&self) -> TargetId {
        TargetId { pod: self.pod.id, local: self.local }
    }

    /// Counts one request on this rank for as long as the guard lives.
    pub(crate) fn occupy(&self) -> Occupied {
        let seat = self.pod.seats.get(usize::from(self.local.0)).cloned();
        if let Some(seat) = &seat {
            seat.fetch_add(1, Ordering::Relaxed);
        }
        Occupied(seat)
    }
}

/// One request's place on a rank.
#[derive(Debug)]
pub(crate) struct Occupied(Option<Arc<AtomicU32>>);

impl Occupied {
    /// No place.
    pub(crate) fn none() -> Self {
        Self(None)
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        if let Some(seat) = &self.0 {
            seat.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What is known of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RankView {
    pub(crate) rank: DpRank,
    pub(crate) ready: bool,
    /// The sidecar's word, or the router's own while it has heard nothing.
    pub(crate) state: String,
    /// In words, for operators: may hold addresses.
    pub(crate) reasons: Vec<String>,
    /// Requests running in the engine, as last reported.
    pub(crate) running: u64,
    /// Requests waiting in the engine, as last reported.
    pub(crate) waiting: u64,
}

/// What is known of one pod, a view per local rank.
pub(crate) type PodView = Arc<Vec<RankView>>;

/// The ranks of a pod of which nothing is known, and why.
pub(crate) fn unknown(ranks: u16, state: &str, reason: &str) -> PodView {
    let view = |rank| RankView {
        rank: DpRank(rank),
        ready: false,
        state: state.to_owned(),
        reasons: vec![reason.to_owned()],
        running: 0,
        waiting: 0,
    };
    Arc::new((0..ranks).map(view).collect())
}

/// A rank that could be chosen, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) target: Target,
    pub(crate) view: RankView,
    pub(crate) occupied: u32,
}

/// All pods with their views.
#[derive(Debug)]
pub(crate) struct Board {
    pods: Vec<(Arc<Pod>, watch::Receiver<PodView>)>,
}

/// A pod with the sending end of its view: what a watcher is started with.
pub(crate) type Watched = (Arc<Pod>, watch::Sender<PodView>);

impl Board {
    /// All pods, none of them ready.
    pub(crate) fn new(pods: Vec<(PodId, Uri, Option<Uri>)>, ranks: impl Fn(Side) -> u16) -> (Self, Vec<Watched>) {
        let mut board = Vec::new();
        let mut watched = Vec::new();
        for (id, engine, sidecar) in pods {
            let ranks = ranks(id.side);
            let seats = (0..ranks).map(|_| Arc::default()).collect();
            let (tx, rx) = watch::channel(unknown(ranks, "unknown", "nothing heard of it yet"));
            let pod = Arc::new(Pod { id, engine, sidecar, seats });
            board.push((Arc::clone(&pod), rx));
            watched.push((pod, tx));
        }
        (Self { pods: board }, watched)
    }

    /// Every rank of one side, ready or not.
    pub(crate) fn ranks(&self, side: Side) -> Vec<Candidate> {
        let mut all = Vec::new();
        for (pod, view) in self.pods.iter().filter(|(pod, _)| pod.id.side == side) {
            let view = Arc::clone(&view.borrow());
            for ((local, seat), view) in (0..).map(LocalRank).zip(&pod.seats).zip(view.iter()) {
                let target = Target { pod: Arc::clone(pod), local, rank: view.rank };
                all.push(Candidate { target, view: view.clone(), occupied: seat.load(Ordering::Relaxed) });
            }
        }
        all
    }

    /// Why not all of a side's ranks are ready: names and states without addresses, for clients; bounded.
    pub(crate) fn why_not_ready(&self, side: Side) -> String {
        const NAMED: usize = 16;
        let waiting: Vec<Candidate> = self.ranks(side).into_iter().filter(|candidate| !candidate.view.ready).collect();
        let mut words: Vec<String> =
            waiting.iter().take(NAMED).map(|c| format!("{} is {}", c.target.id(), c.view.state)).collect();
        if waiting.len() > NAMED {
            words.push(format!("and {} more", waiting.len() - NAMED));
        }
        words.join(", ")
    }
}

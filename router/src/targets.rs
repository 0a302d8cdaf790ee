//! Where requests can go: pods, their ranks, and what is known of them.
//!
//! | module | is |
//! |---|---|
//! | [`rank`] | one rank: what its pod says of it, what this router has under way there, its breaker |
//! | [`board`] | all pods, as they come and go |
//! | [`tally`] | what a rank has done |

mod board;
mod rank;
mod tally;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderValue, Uri};
use kv::ids::{DpRank, LocalRank};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::breaker::{Guard, Tuning};
use crate::trail::Leg;

pub(crate) use board::{AlreadyThere, Board, Candidate, Fleet, PodSpec};
pub(crate) use rank::{Rank, RankView};
pub(crate) use tally::{Part, Tally};

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

/// A pod, by its side and a number that no other pod of the side ever had. Its display form holds no address: it may go to clients.
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

/// How a leg went wrong, as far as breakers care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing of the pod was reached.
    Unreachable,
    /// It was reached, and failed.
    Failed,
}

/// One pod and what is needed to speak to it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: PodId,
    pub(crate) engine: Uri,
    /// `None` with the direct gate, which speaks to no sidecar.
    pub(crate) sidecar: Option<Uri>,
    pub(crate) ranks: Box<[Rank]>,
    pub(crate) breaker: Guard,
    /// No new work for any of its ranks: an operator drains it.
    pub(crate) draining: AtomicBool,
    /// Ends its watcher.
    pub(crate) stop: CancellationToken,
    /// How heavily an unreachable pod counts: the second time in a row opens its breaker.
    unreachable_weight: u32,
    started: Instant,
    pub(crate) added: Instant,
}

impl Pod {
    fn new(id: PodId, spec: PodSpec, tuning: Tuning, stop: CancellationToken, started: Instant) -> Self {
        let PodSpec { engine, sidecar, ranks, .. } = spec;
        let ranks = (0..ranks).map(|local| Rank::new(&engine, LocalRank(local), tuning)).collect();
        Self {
            id,
            engine,
            sidecar,
            ranks,
            breaker: Guard::new(tuning.of_pod()),
            draining: AtomicBool::new(false),
            stop,
            unreachable_weight: if tuning.failures == Tuning::NEVER { 0 } else { tuning.failures },
            started,
            added: Instant::now(),
        }
    }

    /// Publishes what is known of one rank. A rank beyond the configured size gets no requests.
    pub(crate) fn show(&self, local: LocalRank, view: RankView) {
        let Some(rank) = self.ranks.get(usize::from(local.0)) else { return };
        if rank.show(view) {
            // A rank that has become ready may have been mended.
            self.breaker.reconsider();
        }
    }

    /// Publishes that nothing is known of any rank, and why.
    pub(crate) fn lose(&self, state: &str, reason: &str) {
        for rank in &self.ranks {
            rank.lose(state, reason);
        }
    }

    /// Whether one of its ranks has this number.
    pub(crate) fn has(&self, number: DpRank) -> bool {
        self.ranks.iter().any(|rank| rank.number() == number)
    }

    /// This router's requests there.
    pub(crate) fn in_flight(&self) -> u64 {
        self.ranks.iter().map(|rank| u64::from(rank.in_flight())).sum()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Milliseconds since the router started.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Pod {
    /// How many ranks it has.
    pub(crate) fn ranks(&self) -> usize {
        self.ranks.len()
    }
}

/// A rank that a request was given: the pod, its number there and its number in the deployment.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) pod: Arc<Pod>,
    pub(crate) local: LocalRank,
    pub(crate) rank: DpRank,
    /// Tokens that the request may cost there.
    pub(crate) tokens: u32,
}

impl Target {
    pub(crate) fn id(&self) -> TargetId {
        TargetId { pod: self.pod.id, local: self.local }
    }

    /// Counts one request on this rank for as long as the guard lives.
    pub(crate) fn occupy(&self) -> Occupied {
        if let Some(rank) = self.rank() {
            rank.enter(self.tokens);
        }
        Occupied(Some((Arc::clone(&self.pod), self.local, self.tokens)))
    }

    /// A leg on this rank went well.
    pub(crate) fn worked(&self) {
        self.pod.breaker.succeed();
        if let Some(rank) = self.rank() {
            rank.breaker.succeed();
        }
    }

    /// A leg on this rank went wrong.
    pub(crate) fn failed(&self, fault: Fault) {
        let now = self.pod.now_ms();
        match fault {
            Fault::Unreachable => self.pod.breaker.fail(now, self.pod.unreachable_weight),
            Fault::Failed => {
                self.pod.breaker.fail(now, 1);
                if let Some(rank) = self.rank() {
                    rank.breaker.fail(now, 1);
                }
            }
        }
    }

    /// What the rank has done of one part of requests.
    pub(crate) fn part(&self, leg: Leg) -> Option<&Part> {
        self.rank()?.tally.of(leg)
    }

    /// The rank's number in its pod, as its engine is told it.
    pub(crate) fn local_rank(&self) -> HeaderValue {
        self.rank().map_or_else(|| HeaderValue::from(self.local.0), |rank| rank.local_rank.clone())
    }

    fn rank(&self) -> Option<&Rank> {
        self.pod.ranks.get(usize::from(self.local.0))
    }
}

/// One request's place on a rank.
#[derive(Debug)]
pub(crate) struct Occupied(Option<(Arc<Pod>, LocalRank, u32)>);

impl Occupied {
    /// No place.
    pub(crate) fn none() -> Self {
        Self(None)
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        if let Some((pod, local, tokens)) = &self.0
            && let Some(rank) = pod.ranks.get(usize::from(local.0))
        {
            rank.leave(*tokens);
        }
    }
}

//! Reads of one agent: in flight until a terminal status was seen; memory of those that did not end well is buried, that is,
//! pinned until the agent has been destroyed, because a NIC may write after NIXL has reported a failure.

use std::time::{Duration, Instant};

use nixl_sys::Progress;

use super::{
    clock,
    inbox::ReadAnswers,
    prepared::{PreparedLocal, PreparedRemote},
    raw::{RawAgent, Request},
};
use crate::{
    descs::LocalDescs,
    error::FabricError,
    fabric::{FabricStats, ReadDone},
    name::AgentName,
    pending::Answer,
};

/// What must not go while hardware may write.
#[derive(Debug)]
pub(super) enum Pins {
    Listed { _local: LocalDescs },
    Prepared { _local: PreparedLocal, _remote: PreparedRemote },
}

#[derive(Debug)]
struct InFlight {
    request: Request,
    pins: Pins,
    peer: AgentName,
    bytes: u64,
    descs: usize,
    notifying: bool,
    started: Instant,
    post: Duration,
    done: Answer<ReadDone>,
}

/// Memory that nobody may touch any more. The request is kept only when NIXL would not take it back.
#[derive(Debug)]
struct Buried {
    _pins: Pins,
    request: Option<Request>,
    peer: AgentName,
}

/// A read to start.
pub(super) struct Start {
    pub(super) request: Request,
    pub(super) pins: Pins,
    pub(super) peer: AgentName,
    pub(super) bytes: u64,
    pub(super) descs: usize,
    /// The peer is sent a notification with it.
    pub(super) notifying: bool,
    pub(super) answers: ReadAnswers,
}

/// What one round of polls has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ended {
    /// Reads that have ended, well or not.
    pub(super) reads: usize,
    /// One of them sends a notification.
    pub(super) notifying: bool,
}

#[derive(Debug, Default)]
pub(super) struct Transfers {
    in_flight: Vec<InFlight>,
    buried: Vec<Buried>,
    buried_count: u64,
    buried_bytes: u64,
    failed_cleanups: u64,
}

impl Transfers {
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether anything still uses what was loaded of this peer.
    pub(super) fn use_peer(&self, peer: &AgentName) -> bool {
        self.in_flight.iter().any(|read| read.peer == *peer)
            || self.buried.iter().any(|buried| buried.peer == *peer && buried.request.is_some())
    }

    /// Whether NIXL has taken back every request.
    pub(super) fn all_released(&self) -> bool {
        self.in_flight.is_empty() && self.buried.iter().all(|buried| buried.request.is_none())
    }

    pub(super) fn count(&self, stats: &mut FabricStats) {
        stats.in_flight = self.in_flight.len();
        stats.in_flight_bytes = self.in_flight.iter().map(|read| read.bytes).sum();
        stats.buried = self.buried_count;
        stats.buried_bytes = self.buried_bytes;
        stats.failed_cleanups = self.failed_cleanups;
    }

    pub(super) fn cleanup_failed(&mut self) {
        self.failed_cleanups += 1;
    }

    /// Posts a read; it may have ended when this returns.
    pub(super) fn post(&mut self, raw: &RawAgent, start: Start) {
        let Start { mut request, pins, peer, bytes, descs, notifying, answers } = start;
        let ReadAnswers { posted, done } = answers;
        let started = clock::now();
        let progress = raw.post(&mut request);
        let post = started.elapsed();
        let read = InFlight { request, pins, peer, bytes, descs, notifying, started, post, done };
        match progress {
            Ok(Progress::Running) => {
                posted.send(Ok(()));
                self.in_flight.push(read);
            }
            Ok(Progress::Done) => {
                posted.send(Ok(()));
                self.landed(raw, read);
            }
            // Also a refused post may have started some of its parts.
            Err(error) => {
                posted.send(Err(FabricError::Transfer(error)));
                self.failed(raw, read, FabricError::Transfer(error));
            }
        }
    }

    /// Asks for each read once.
    pub(super) fn poll(&mut self, raw: &RawAgent) -> Ended {
        let mut ended = Ended::default();
        let mut index = 0;
        while let Some(read) = self.in_flight.get_mut(index) {
            let answer = match raw.progress(&mut read.request) {
                Ok(Progress::Running) => {
                    index += 1;
                    continue;
                }
                Ok(Progress::Done) => Ok(()),
                Err(error) => Err(FabricError::Transfer(error)),
            };
            let read = self.in_flight.swap_remove(index);
            ended.reads += 1;
            ended.notifying |= read.notifying;
            match answer {
                Ok(()) => self.landed(raw, read),
                Err(error) => self.failed(raw, read, error),
            }
        }
        ended
    }

    fn landed(&mut self, raw: &RawAgent, read: InFlight) {
        let wire = read.started.elapsed();
        let InFlight { request, pins, peer, bytes, descs, post, done, .. } = read;
        if let Err((request, _error)) = raw.release(request) {
            // The bytes are there, but a request that NIXL holds on to may hold on to its lists as well.
            self.failed_cleanups += 1;
            self.bury(pins, request, peer, bytes);
        }
        done.send(Ok(ReadDone { bytes, descs, post, wire }));
    }

    fn failed(&mut self, raw: &RawAgent, read: InFlight, error: FabricError) {
        let InFlight { request, pins, peer, bytes, done, .. } = read;
        let request = match raw.release(request) {
            Ok(()) => None,
            Err((request, _error)) => {
                self.failed_cleanups += 1;
                request
            }
        };
        self.bury(pins, request, peer, bytes);
        done.send(Err(error));
    }

    fn bury(&mut self, pins: Pins, request: Option<Request>, peer: AgentName, bytes: u64) {
        self.buried_count += 1;
        self.buried_bytes = self.buried_bytes.saturating_add(bytes);
        self.buried.push(Buried { _pins: pins, request, peer });
    }

    /// Gives up everything in flight, before the agent is destroyed. Answers whether all had ended well.
    pub(super) fn give_up(&mut self, raw: &RawAgent) -> bool {
        for read in std::mem::take(&mut self.in_flight) {
            self.failed(raw, read, FabricError::Abandoned);
        }
        for buried in &mut self.buried {
            if let Some(request) = buried.request.take()
                && let Err((request, _error)) = raw.release(request)
            {
                buried.request = request;
            }
        }
        self.buried.is_empty()
    }

    /// After a panic: tells those who wait; the rest is leaked by our caller.
    pub(super) fn lose(&mut self) {
        for read in &mut self.in_flight {
            read.done.lose();
        }
    }
}

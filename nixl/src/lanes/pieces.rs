//! A read in pieces, which two agents take one after the other: whoever is faster takes more.
//!
//! An agent's thread that ends a piece gives out the next one itself: whoever waits for the whole may be long in coming where cores are few.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::task::{Unconstrained, unconstrained};

use super::turn::Turn;
use crate::{
    descs::{LocalDescs, RemoteDescs},
    error::FabricError,
    fabric::{Fabric, Read, ReadDone, Reading},
    name::AgentName,
    pending::Pending,
    region::Region,
};

/// A read has so many pieces at most.
const MOST: u64 = 32;
/// A piece has so many bytes at least.
const LEAST: u64 = 1 << 20;
/// Where a read may be cut.
const GRAIN: u64 = 64 << 10;
/// Pieces that an agent has at a time: it goes on to the second one without a wait.
const AHEAD: usize = 2;

/// The whole.
pub(super) struct Pieces {
    /// Of whoever's turn it is.
    state: Mutex<State>,
    turn: Turn,
}

struct State {
    peer: AgentName,
    rest: VecDeque<Piece>,
    lanes: [Lane; 2],
    bytes: u64,
    descs: usize,
    failed: Option<FabricError>,
    /// Called once, at the end.
    end: Option<End>,
}

#[derive(Clone)]
struct Piece {
    local: LocalDescs,
    remote: RemoteDescs,
}

/// What one agent has read and is reading.
struct Lane {
    /// Whoever drops the agent does not want the rest.
    agent: Weak<dyn Fabric>,
    region: Region,
    under_way: VecDeque<(Piece, Unconstrained<Pending<ReadDone>>)>,
    /// It takes no more.
    refuses: bool,
    post: Duration,
    wire: Duration,
}

/// How it ended.
pub(super) struct Ended {
    pub(super) done: Result<ReadDone, FabricError>,
    /// What all posts took together, and all pieces.
    pub(super) post_and_wire: (Duration, Duration),
    /// The second agent has refused a piece, which the first one then read.
    pub(super) refused: bool,
}

/// What is done at the end, on the thread of an agent.
pub(super) type End = Box<dyn FnOnce(Ended) + Send>;

impl Lane {
    fn new(agent: &Arc<dyn Fabric>, region: &Region) -> Self {
        let (agent, region, under_way) = (Arc::downgrade(agent), region.clone(), VecDeque::new());
        Self { agent, region, under_way, refuses: false, post: Duration::ZERO, wire: Duration::ZERO }
    }

    /// Answers when the piece has been posted.
    fn begin(&mut self, peer: &AgentName, piece: Piece) -> Pending<()> {
        let local = piece.local.within(&self.region);
        let read = Read { peer: peer.clone(), local, remote: piece.remote.clone(), notify: None };
        let closed = || Err(FabricError::Closed);
        let Reading { posted, done } = match self.agent.upgrade() {
            Some(agent) => agent.read(read),
            None => Reading { posted: Pending::ready(closed()), done: Pending::ready(Err(FabricError::Closed)) },
        };
        self.under_way.push_back((piece, unconstrained(done)));
        posted
    }

    /// Its oldest piece, once that has ended.
    fn ended(&mut self, context: &mut Context<'_>) -> Option<(Piece, Result<ReadDone, FabricError>)> {
        let (_, done) = self.under_way.front_mut()?;
        let Poll::Ready(done) = Pin::new(done).poll(context) else { return None };
        self.under_way.pop_front().map(|(piece, _)| (piece, done))
    }
}

impl Pieces {
    /// Begins to read; answers when the first piece has been posted. None when it cannot be cut.
    pub(super) fn begin(
        read: &Read,
        first: (&Arc<dyn Fabric>, &Region),
        second: (&Arc<dyn Fabric>, &Region),
        end: End,
    ) -> Option<Pending<()>> {
        let size = (read.local.bytes() / MOST).max(LEAST).next_multiple_of(GRAIN);
        let (local, remote) = (read.local.pieces(size), read.remote.pieces(size));
        if local.len() != remote.len() {
            // Lists that do not pair up: whoever is given them whole says so.
            return None;
        }
        let pair = |(local, remote)| Piece { local, remote };
        let mut rest: VecDeque<_> = local.into_iter().zip(remote).map(pair).collect();
        let mut lanes = [Lane::new(first.0, first.1), Lane::new(second.0, second.1)];
        let posted = lanes[0].begin(&read.peer, rest.pop_front()?);
        let (peer, bytes) = (read.peer.clone(), read.local.bytes());
        let state = State { peer, rest, lanes, bytes, descs: 0, failed: None, end: Some(end) };
        Arc::new(Self { state: Mutex::new(state), turn: Turn::default() }).go_on();
        Some(posted)
    }

    /// Sees what has ended and begins what can be. One thread does at a time; another one that comes meanwhile leaves word.
    fn go_on(self: &Arc<Self>) {
        if !self.turn.come() {
            return;
        }
        let waker = Waker::from(Arc::clone(self));
        loop {
            let ended = self.state.lock().step(&mut Context::from_waker(&waker));
            if let Some((end, ended)) = ended {
                end(ended);
            }
            if self.turn.leave() {
                return;
            }
        }
    }
}

impl Wake for Pieces {
    fn wake(self: Arc<Self>) {
        self.go_on();
    }
}

impl State {
    fn step(&mut self, context: &mut Context<'_>) -> Option<(End, Ended)> {
        self.fill();
        while let Some((at, piece, done)) = self.next_end(context) {
            self.ended(at, piece, done);
            self.fill();
        }
        if self.lanes.iter().any(|lane| !lane.under_way.is_empty()) {
            return None;
        }
        let end = self.end.take()?;
        let [one, two] = &self.lanes;
        let (post, wire) = (one.post.max(two.post), one.wire.max(two.wire));
        let done = ReadDone { bytes: self.bytes, descs: self.descs, post, wire };
        let ended = Ended {
            done: self.failed.take().map_or(Ok(done), Err),
            post_and_wire: (one.post.saturating_add(two.post), one.wire.saturating_add(two.wire)),
            refused: two.refuses,
        };
        Some((end, ended))
    }

    /// Gives each agent what it can take, in turn.
    fn fill(&mut self) {
        for ahead in 1..=AHEAD {
            for lane in &mut self.lanes {
                if lane.under_way.len() < ahead && !lane.refuses && self.failed.is_none() {
                    let Some(piece) = self.rest.pop_front() else { return };
                    // Whether it was posted, its end says too.
                    drop(lane.begin(&self.peer, piece));
                }
            }
        }
    }

    fn next_end(&mut self, context: &mut Context<'_>) -> Option<(usize, Piece, Result<ReadDone, FabricError>)> {
        let ends = self.lanes.iter_mut().enumerate();
        ends.filter_map(|(at, lane)| lane.ended(context).map(|(piece, done)| (at, piece, done))).next()
    }

    /// A piece that fails ends the read, once those under way have ended too.
    fn ended(&mut self, at: usize, piece: Piece, done: Result<ReadDone, FabricError>) {
        let Some(lane) = self.lanes.get_mut(at) else { return };
        match done {
            Ok(done) => {
                self.descs = self.descs.saturating_add(done.descs);
                lane.post = lane.post.saturating_add(done.post);
                lane.wire = lane.wire.saturating_add(done.wire);
            }
            // The second agent may be full, or not know the peer: the first one does.
            Err(error) if at == 1 && error.memory_is_quiet() => {
                lane.refuses = true;
                self.rest.push_front(piece);
            }
            // What may still be written decides.
            Err(error) if self.failed.as_ref().is_none_or(FabricError::memory_is_quiet) => self.failed = Some(error),
            Err(_) => {}
        }
    }
}

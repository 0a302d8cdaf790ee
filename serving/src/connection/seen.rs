//! The notes on one connection, and what they say it waits for.

use std::sync::Arc;
use std::time::Duration;

use http::Version;
use tokio::time::Instant;

use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The rest of a request's head.
    Head,
    /// The next request.
    Idle,
    /// Nothing: requests are being answered.
    Answering,
}

/// The notes on one connection.
///
/// A part of a head that came with the request before it is not seen as one: such a connection is closed as an idle one.
#[derive(Debug)]
pub(crate) struct Seen {
    opened: Instant,
    requests: AtomicU32,
    /// Bytes have come since the last answer, or none was given yet.
    head: AtomicBool,
    /// Bytes between requests need not be a request's: HTTP/2 has frames of its own.
    frames: AtomicBool,
    /// When the phase began, in milliseconds since `opened`.
    since: AtomicU64,
}

impl Seen {
    /// A connection that has just been opened owes a request.
    pub(crate) fn new(opened: Instant) -> Self {
        Self {
            opened,
            requests: AtomicU32::new(0),
            head: AtomicBool::new(true),
            frames: AtomicBool::new(false),
            since: AtomicU64::new(0),
        }
    }

    /// What it waits for, and since when.
    pub(crate) fn phase(&self) -> (Phase, Instant) {
        // Asked first: an answer's end (HTTP/2 has it on another thread) writes down the time before it says that it has ended.
        let answering = self.requests.load(Ordering::Acquire) > 0;
        let since = self.opened + Duration::from_millis(self.since.load(Ordering::Relaxed));
        match (answering, self.head.load(Ordering::Relaxed)) {
            (true, _) => (Phase::Answering, since),
            (false, true) => (Phase::Head, since),
            (false, false) => (Phase::Idle, since),
        }
    }

    /// A request's head is complete; it is under way until the guard goes.
    pub(crate) fn begin(self: &Arc<Self>, version: Version) -> UnderWay {
        if version == Version::HTTP_2 {
            self.frames.store(true, Ordering::Relaxed);
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Bytes have come.
    pub(super) fn read(&self) {
        if self.requests.load(Ordering::Acquire) > 0 || self.head.load(Ordering::Relaxed) {
            return;
        }
        self.since.store(self.now(), Ordering::Relaxed);
        if !self.frames.load(Ordering::Relaxed) {
            self.head.store(true, Ordering::Relaxed);
        }
    }
}

/// One request of a connection.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Seen>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.since.store(self.0.now(), Ordering::Relaxed);
        self.0.head.store(false, Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::Release);
    }
}

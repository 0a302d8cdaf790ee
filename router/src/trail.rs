//! What happened to one request and when: filled on its way, told in response headers, counted and kept at its end.
//!
//! Times are tokio's monotonic clock, counted from the request's arrival. Nothing here holds an address but the pods themselves, which
//! are named, not shown, to clients.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use kv::ids::TransferId;
use tokio::time::Instant;

use crate::headers::Path;
use crate::ladder::Next;
use crate::spans::{AttemptTrace, RequestTrace};
use crate::targets::Target;

/// Attempts that are kept with their details; of more, the last takes the place of the one before it.
const MAX_ATTEMPTS: usize = 16;

/// A part of a request's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Leg {
    /// Reading the client's body.
    Body,
    /// Waiting to be worked on.
    Queue,
    /// Choosing ranks.
    Choice,
    /// Leaving a rank alone that has failed this request.
    Backoff,
    /// P's work, to the last byte of its answer.
    Prefill,
    /// D's sidecar's work, from the question to the receipt.
    Transfer,
    /// D's work up to its first event.
    Decode,
    /// From the first byte to the last.
    Stream,
}

impl Leg {
    /// The word in headers, metrics and JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Queue => "queue",
            Self::Choice => "choice",
            Self::Backoff => "backoff",
            Self::Prefill => "prefill",
            Self::Transfer => "transfer",
            Self::Decode => "decode",
            Self::Stream => "stream",
        }
    }
}

/// When something began and ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: Option<Duration>,
    pub(crate) to: Option<Duration>,
}

impl Span {
    /// How long it took, once it has ended.
    pub(crate) fn took(&self) -> Option<Duration> {
        Some(self.to?.saturating_sub(self.from?))
    }
}

/// Why an attempt failed.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    /// The part that failed.
    pub(crate) leg: Leg,
    /// What happened, from a short list.
    pub(crate) fault: &'static str,
    /// The stable code that a client would get.
    pub(crate) code: Cow<'static, str>,
    /// What the ladder did about it.
    pub(crate) next: Next,
}

/// [`Failed`] with when, and the error in words, which may hold addresses.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) why: Failed,
    pub(crate) detail: String,
    pub(crate) at: Duration,
}

/// One try of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    /// From 1.
    pub(crate) number: u32,
    /// What engines and sidecars know it by, where that is not the request's id and this number.
    known_as: Option<Box<str>>,
    pub(crate) prefill_target: Option<Target>,
    pub(crate) decode_target: Option<Target>,
    pub(crate) transfer_id: Option<TransferId>,
    pub(crate) choice: Span,
    pub(crate) backoff: Span,
    pub(crate) prefill: Span,
    pub(crate) transfer: Span,
    pub(crate) decode: Span,
    pub(crate) failed: Option<Failure>,
    /// What the ids of its legs' spans are made from; 0 where nothing is traced.
    pub(crate) seed: u64,
}

impl Attempt {
    /// Its parts in their order.
    pub(crate) fn legs(&self) -> [(Leg, Span); 5] {
        [
            (Leg::Choice, self.choice),
            (Leg::Backoff, self.backoff),
            (Leg::Prefill, self.prefill),
            (Leg::Transfer, self.transfer),
            (Leg::Decode, self.decode),
        ]
    }

    fn leg(&mut self, leg: Leg) -> Option<&mut Span> {
        match leg {
            Leg::Choice => Some(&mut self.choice),
            Leg::Backoff => Some(&mut self.backoff),
            Leg::Prefill => Some(&mut self.prefill),
            Leg::Transfer => Some(&mut self.transfer),
            Leg::Decode => Some(&mut self.decode),
            Leg::Body | Leg::Queue | Leg::Stream => None,
        }
    }
}

/// One request's way.
#[derive(Clone, Debug)]
pub(crate) struct Trail {
    /// The router's id of it.
    pub(crate) id: Arc<str>,
    /// The client's.
    pub(crate) client_id: Option<Arc<str>>,
    /// The path that was asked.
    pub(crate) endpoint: &'static str,
    pub(crate) arrived: Instant,
    pub(crate) path: Path,
    /// Why a request was not split.
    pub(crate) local_because: Option<&'static str>,
    pub(crate) body: Span,
    pub(crate) queue: Span,
    pub(crate) stream: Span,
    /// Tries in all.
    pub(crate) attempts: u32,
    /// The tries themselves, at most [`MAX_ATTEMPTS`].
    pub(crate) tries: Vec<Attempt>,
    /// What has been spent on the attempt that has no number yet.
    choosing: Span,
    backing_off: Span,
    pub(crate) status: Option<StatusCode>,
    /// The code of the error that the client got from the router.
    pub(crate) code: Option<Cow<'static, str>>,
    /// Frames of the answer that were passed on.
    pub(crate) chunks: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Its trace, if it is traced.
    pub(crate) trace: Option<Box<RequestTrace>>,
}

impl Trail {
    /// A request that arrives now.
    pub(crate) fn new(id: Arc<str>, client_id: Option<Arc<str>>, endpoint: &'static str) -> Self {
        Self {
            id,
            client_id,
            endpoint,
            arrived: Instant::now(),
            path: Path::None,
            local_because: None,
            body: Span::default(),
            queue: Span::default(),
            stream: Span::default(),
            attempts: 0,
            tries: Vec::new(),
            choosing: Span::default(),
            backing_off: Span::default(),
            status: None,
            code: None,
            chunks: 0,
            bytes: 0,
            trace: None,
        }
    }

    /// The trace of the attempt that is under way, if there is one.
    pub(crate) fn attempt_trace(&self) -> Option<AttemptTrace> {
        Some(self.trace.as_ref()?.attempt(self.tries.last()?.seed))
    }

    /// Time since the arrival.
    pub(crate) fn now(&self) -> Duration {
        self.arrived.elapsed()
    }

    /// Ranks are being chosen for the next attempt.
    pub(crate) fn choosing(&mut self) {
        self.choosing = Span { from: Some(self.now()), to: None };
    }

    /// They have been chosen.
    pub(crate) fn chosen(&mut self) {
        self.choosing.to = Some(self.now());
    }

    /// One of them is left alone for a while, until [`Self::next_attempt`].
    pub(crate) fn backing_off(&mut self) {
        self.backing_off = Span { from: Some(self.now()), to: None };
    }

    /// The next attempt's number; what follows is noted with it.
    pub(crate) fn next_attempt(&mut self) -> u32 {
        self.attempts = self.attempts.saturating_add(1);
        if self.tries.len() >= MAX_ATTEMPTS {
            self.tries.pop();
        }
        let (choice, mut backoff) = (std::mem::take(&mut self.choosing), std::mem::take(&mut self.backing_off));
        backoff.to = backoff.from.map(|_| self.now());
        let seed = if self.trace.is_some() { fastrand::u64(..) } else { 0 };
        // Most requests make one attempt, and thousands of them are kept.
        if self.tries.is_empty() {
            self.tries.reserve_exact(1);
        }
        self.tries.push(Attempt { number: self.attempts, choice, backoff, seed, ..Attempt::default() });
        self.attempts
    }

    /// The attempts that were made for one prompt of this request, apart from its others.
    pub(crate) fn add(&mut self, branch: Self) {
        for attempt in branch.tries {
            self.attempts = self.attempts.saturating_add(1);
            if self.tries.len() < MAX_ATTEMPTS {
                let known_as = Some(format!("{}-{}", branch.id, attempt.number).into());
                self.tries.push(Attempt { number: self.attempts, known_as, ..attempt });
            }
        }
    }

    /// Whether engines and sidecars know one of its attempts by this id.
    pub(crate) fn has_attempt(&self, id: &str) -> bool {
        self.tries.iter().any(|attempt| match &attempt.known_as {
            Some(known) => **known == *id,
            None => {
                let number = id.strip_prefix(&*self.id).and_then(|rest| rest.strip_prefix('-'));
                number.and_then(|number| number.parse().ok()) == Some(attempt.number)
            }
        })
    }

    /// What engines and sidecars know one of its attempts by.
    pub(crate) fn attempt_id(&self, attempt: &Attempt) -> String {
        let composed = || format!("{}-{}", self.id, attempt.number);
        attempt.known_as.as_ref().map_or_else(composed, |known| known.to_string())
    }

    /// Where this attempt prefills, or has prefilled.
    pub(crate) fn prefill_on(&mut self, target: &Target) {
        if let Some(attempt) = self.tries.last_mut() {
            attempt.prefill_target = Some(target.clone());
        }
    }

    /// Where it decodes.
    pub(crate) fn decode_on(&mut self, target: &Target) {
        if let Some(attempt) = self.tries.last_mut() {
            attempt.decode_target = Some(target.clone());
        }
    }

    /// A part begins.
    pub(crate) fn begin(&mut self, leg: Leg) {
        let now = self.now();
        if let Some(span) = self.leg(leg) {
            *span = Span { from: Some(now), to: None };
        }
    }

    /// A part has ended well.
    pub(crate) fn end(&mut self, leg: Leg) {
        let now = self.now();
        if let Some(span) = self.leg(leg) {
            span.to = Some(now);
        }
    }

    /// The sidecar's receipt has come.
    pub(crate) fn landed(&mut self, transfer: TransferId) {
        self.end(Leg::Transfer);
        if let Some(attempt) = self.tries.last_mut() {
            attempt.transfer_id = Some(transfer);
        }
    }

    /// This attempt has failed, and what comes next.
    pub(crate) fn failed(&mut self, why: Failed, error: &dyn std::error::Error) {
        let at = self.now();
        if let Some(attempt) = self.tries.last_mut() {
            if let Some(span) = attempt.leg(why.leg) {
                span.to = Some(at);
            }
            attempt.failed = Some(Failure { why, detail: with_causes(error), at });
        }
    }

    /// A frame of the answer goes out.
    pub(crate) fn chunk(&mut self, bytes: usize) {
        self.chunks += 1;
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// How long the last try's part took, or that of an earlier try that it goes on from.
    pub(crate) fn took(&self, leg: Leg) -> Option<Duration> {
        let of = |attempt: &Attempt| attempt.legs().into_iter().find(|(of, _)| *of == leg)?.1.took();
        match leg {
            Leg::Body => self.body.took(),
            Leg::Queue => self.queue.took(),
            Leg::Stream => self.stream.took(),
            Leg::Prefill => self.tries.iter().rev().find_map(of),
            Leg::Choice | Leg::Backoff | Leg::Transfer | Leg::Decode => self.tries.last().and_then(of),
        }
    }

    fn leg(&mut self, leg: Leg) -> Option<&mut Span> {
        match leg {
            Leg::Body => Some(&mut self.body),
            Leg::Queue => Some(&mut self.queue),
            Leg::Stream => Some(&mut self.stream),
            Leg::Choice | Leg::Backoff | Leg::Prefill | Leg::Transfer | Leg::Decode => self.tries.last_mut()?.leg(leg),
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    crate::error::cut_short(words)
}

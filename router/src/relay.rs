//! D's answer on its way to the client: piece by piece as it comes, without D's own transfer parameters, and with words at its
//! end when it breaks off.

mod events;
mod held;
mod scrub;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::warn;

use crate::admission::Running;
use crate::error::{ApiError, Dialect};
use crate::handoff::Claimed;
use crate::metrics::{Ended, Outcome};
use crate::targets::Occupied;
pub(crate) use events::WholeEvents;
pub(crate) use held::{ErrorEvent, Held, NoAnswer};
pub(crate) use scrub::Scrub;

/// What a request holds until its last byte has gone out.
#[derive(Debug)]
#[expect(dead_code, reason = "held until dropped")]
pub(crate) struct Holdings {
    pub(crate) ended: Ended,
    pub(crate) running: Running,
    pub(crate) decode_rank: Occupied,
    /// Kept until the decode leg has ended; its end is told to the sidecar.
    pub(crate) claimed: Option<Claimed>,
    /// What the request counts as when its answer comes to its end.
    pub(crate) whole: Outcome,
}

/// Why an answer broke off. A stream's client reads it in a last event; another one sees a connection that ends before the body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("the decode engine broke off")]
    Broken(#[source] axum::Error),
    #[error("the decode engine was silent for {0:?}")]
    Silent(Duration),
    #[error("the router's drain timeout is over")]
    Cut,
}

impl RelayError {
    /// For the client: words without addresses.
    fn public(&self) -> ApiError {
        let (status, code, message, outcome) = match self {
            Self::Broken(_) => (
                StatusCode::BAD_GATEWAY,
                "decode_broken",
                "the decode engine broke off in the middle of its answer",
                Outcome::Broken,
            ),
            Self::Silent(_) => (
                StatusCode::GATEWAY_TIMEOUT,
                "decode_timeout",
                "the decode engine fell silent in the middle of its answer",
                Outcome::Broken,
            ),
            Self::Cut => (
                StatusCode::SERVICE_UNAVAILABLE,
                "shutting_down",
                "the router is shutting down before the answer is complete",
                Outcome::Cut,
            ),
        };
        ApiError::new(status, code, message, outcome)
    }
}

/// Who is told when the answer breaks off.
#[derive(Debug)]
pub(crate) struct Reader {
    /// As the client knows it.
    pub(crate) request_id: Arc<str>,
    pub(crate) dialect: Dialect,
}

/// Whether the router's drain timeout is over is asked whenever the engine has nothing yet, and after so many frames of an engine that
/// always has something: asking takes a lock.
const CUT_EVERY: u8 = 32;

/// The body that the client gets.
#[derive(Debug)]
pub(crate) struct Relay {
    held: Held,
    scrub: Scrub,
    events: WholeEvents,
    /// Longest wait for the engine's next bytes. A client that is slow to take them is no silence of the engine.
    silence: Duration,
    waiting_since: Option<Instant>,
    /// Both are made when the engine lets the client wait for the first time.
    idle: Option<Pin<Box<Sleep>>>,
    cutting: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    cut: CancellationToken,
    /// Frames that came at once; see [`CUT_EVERY`].
    since_cut_was_asked: u8,
    holdings: Option<Holdings>,
    reader: Reader,
    over: bool,
}

type Next = Poll<Option<Result<Frame<Bytes>, RelayError>>>;

impl Relay {
    pub(crate) fn new(
        held: Held,
        silence: Duration,
        cut: CancellationToken,
        reader: Reader,
        holdings: Holdings,
    ) -> Self {
        let mut relay = Self {
            held,
            scrub: Scrub::new(),
            events: WholeEvents::default(),
            silence,
            waiting_since: None,
            idle: None,
            cutting: None,
            cut,
            since_cut_was_asked: 0,
            holdings: Some(holdings),
            reader,
            over: false,
        };
        relay.finish_at_end();
        relay
    }

    fn count(&mut self, data: &Bytes) {
        if let Some(holdings) = &mut self.holdings {
            holdings.ended.trail.chunk(data.len());
        }
    }

    fn end(&mut self, outcome: Option<Outcome>) {
        if let Some(mut holdings) = self.holdings.take() {
            let outcome = outcome.unwrap_or(holdings.whole);
            holdings.ended.outcome(outcome);
        }
    }

    /// Nothing comes any more, and nothing waits.
    fn is_through(&self) -> bool {
        self.over || (self.held.frames.is_empty() && self.held.rest.is_end_stream() && self.events.is_empty())
    }

    /// hyper does not ask again once a body of known length is complete, so the end is noticed with the last frame.
    fn finish_at_end(&mut self) {
        if self.is_through() {
            self.end(None);
        }
    }

    /// Ends a stream with an event that says why, and another answer with an error.
    fn fail(&mut self, error: RelayError) -> Next {
        warn!(request_id = %self.reader.request_id, error = &error as &dyn std::error::Error, "answer breaks off");
        let public = error.public();
        if let Some(holdings) = &mut self.holdings {
            holdings.ended.trail.code = Some(public.code.clone());
        }
        self.end(Some(public.outcome));
        self.held.rest = Body::empty();
        self.over = true;
        if self.held.is_stream && self.events.is_between() {
            let event = public.event(self.reader.dialect, &self.reader.request_id);
            return Poll::Ready(Some(Ok(Frame::data(event.into()))));
        }
        Poll::Ready(Some(Err(error)))
    }

    /// Whether the drain timeout is over; if not, its end wakes the task.
    fn is_cut(&mut self, cx: &mut Context<'_>) -> bool {
        let cut = &self.cut;
        self.cutting.get_or_insert_with(|| Box::pin(cut.clone().cancelled_owned())).as_mut().poll(cx).is_ready()
    }

    /// The engine has nothing yet: how long already?
    fn wait(&mut self, cx: &mut Context<'_>) -> Next {
        let since = match self.waiting_since {
            Some(since) => since,
            None => *self.waiting_since.insert(Instant::now()),
        };
        // The timer is set again only when it goes off, not with every piece of the answer.
        let silence = self.silence;
        let idle = self.idle.get_or_insert_with(|| Box::pin(sleep(silence)));
        loop {
            ready!(idle.as_mut().poll(cx));
            let until = since + silence;
            if until <= Instant::now() {
                return self.fail(RelayError::Silent(silence));
            }
            idle.as_mut().reset(until);
        }
    }
}

impl HttpBody for Relay {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Next {
        let this = &mut *self;
        loop {
            if this.over {
                return Poll::Ready(None);
            }
            let next = if let Some(frame) = this.held.frames.pop() {
                Some(Ok(frame))
            } else {
                let polled = Pin::new(&mut this.held.rest).poll_frame(cx);
                this.since_cut_was_asked = this.since_cut_was_asked.wrapping_add(1);
                let asks = polled.is_pending() || this.since_cut_was_asked.is_multiple_of(CUT_EVERY);
                if asks && this.holdings.is_some() && this.is_cut(cx) {
                    return this.fail(RelayError::Cut);
                }
                match polled {
                    Poll::Ready(next) => next,
                    Poll::Pending => return this.wait(cx),
                }
            };
            this.waiting_since = None;
            let frame = match next {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return this.fail(RelayError::Broken(error)),
                None => {
                    this.over = true;
                    let rest = this.events.rest();
                    rest.iter().for_each(|rest| this.count(rest));
                    this.end(None);
                    return Poll::Ready(rest.map(|rest| Ok(Frame::data(rest))));
                }
            };
            let data = match frame.into_data() {
                Ok(data) => this.scrub.pass(data),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            };
            let data = if this.held.is_stream { this.events.pass(data) } else { Some(data) };
            if let Some(data) = data {
                this.count(&data);
                this.finish_at_end();
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_through()
    }

    /// Of a stream nothing is known: it may get a last event of ours.
    fn size_hint(&self) -> SizeHint {
        if self.held.is_stream {
            return SizeHint::default();
        }
        let held = self.held.frames.bytes();
        let rest = self.held.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}

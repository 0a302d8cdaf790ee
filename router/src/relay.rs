//! D's answer on its way to the client: frame by frame as it comes, with the first event held back until it is known to be
//! an answer and not an error in an answer's dress.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use vllm_wire::openai::{EngineError, error_in_event, first_event};

use crate::admission::Running;
use crate::handoff::Claimed;
use crate::metrics::{Ended, Outcome};
use crate::sse::has_data;
use crate::targets::Occupied;

/// A first event longer than this is let through unread.
const MAX_HELD: usize = 256 * 1024;

/// An answer whose beginning has come.
#[derive(Debug)]
pub(crate) struct Held {
    frames: VecDeque<Frame<Bytes>>,
    rest: Body,
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("the first event is an error")]
    ErrorEvent(#[source] EngineError),
    #[error("the answer ends before its first event")]
    Empty,
    #[error("the answer breaks off before its first event")]
    Broken(#[source] axum::Error),
}

impl Held {
    /// Waits for the first event (of a stream) or the first bytes (otherwise).
    pub(crate) async fn first(mut body: Body, is_stream: bool) -> Result<Self, NoAnswer> {
        let mut frames = VecDeque::new();
        let mut buffer = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(NoAnswer::Broken)?;
            if let Some(data) = frame.data_ref() {
                buffer.extend_from_slice(data);
            }
            frames.push_back(frame);
            if !is_stream || buffer.len() > MAX_HELD || is_answered(&mut buffer)? {
                return Ok(Self { frames, rest: body });
            }
        }
        if is_stream { Err(NoAnswer::Empty) } else { Ok(Self { frames, rest: body }) }
    }
}

/// Whether the first event with data is here and no error; comments before it are passed over.
fn is_answered(buffer: &mut Vec<u8>) -> Result<bool, NoAnswer> {
    while let Some(end) = first_event(buffer) {
        let event: Vec<u8> = buffer.drain(..end).collect();
        if let Some(error) = error_in_event(&event) {
            return Err(NoAnswer::ErrorEvent(error));
        }
        if has_data(&event) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What a request holds until its last byte has gone out.
#[derive(Debug)]
#[expect(dead_code, reason = "held until dropped")]
pub(crate) struct Holdings {
    pub(crate) ended: Ended,
    pub(crate) running: Running,
    pub(crate) decode_rank: Occupied,
    /// Kept until the decode leg has ended; its end is told to the sidecar.
    pub(crate) claimed: Option<Claimed>,
}

/// Why an answer broke off. The client sees a connection that ends before the body does.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("the decode engine broke off")]
    Broken(#[source] axum::Error),
    #[error("the decode engine was silent for {0:?}")]
    Silent(Duration),
    #[error("the router's drain timeout is over")]
    Cut,
}

/// The body that the client gets.
#[derive(Debug)]
pub(crate) struct Relay {
    held: Held,
    silence: Duration,
    idle: Pin<Box<Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    holdings: Option<Holdings>,
}

impl Relay {
    pub(crate) fn new(held: Held, silence: Duration, cut: CancellationToken, holdings: Holdings) -> Self {
        let mut relay = Self {
            held,
            silence,
            idle: Box::pin(sleep(silence)),
            cut: Box::pin(cut.cancelled_owned()),
            holdings: Some(holdings),
        };
        relay.finish_at_end();
        relay
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(mut holdings) = self.holdings.take() {
            holdings.ended.outcome(outcome);
        }
    }

    /// hyper does not ask again once a body of known length is complete, so the end is noticed with the last frame.
    fn finish_at_end(&mut self) {
        if self.held.rest.is_end_stream() && self.held.frames.is_empty() {
            self.end(Outcome::Ok);
        }
    }

    fn fail(&mut self, outcome: Outcome, error: RelayError) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        self.end(outcome);
        self.held.rest = Body::empty();
        Poll::Ready(Some(Err(error)))
    }
}

impl HttpBody for Relay {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let this = &mut *self;
        if let Some(frame) = this.held.frames.pop_front() {
            this.finish_at_end();
            return Poll::Ready(Some(Ok(frame)));
        }
        if this.holdings.is_some() && this.cut.as_mut().poll(cx).is_ready() {
            return this.fail(Outcome::Cut, RelayError::Cut);
        }
        let next = match Pin::new(&mut this.held.rest).poll_frame(cx) {
            Poll::Ready(next) => next,
            Poll::Pending => {
                ready!(this.idle.as_mut().poll(cx));
                let silence = this.silence;
                return this.fail(Outcome::Broken, RelayError::Silent(silence));
            }
        };
        match next {
            Some(Ok(frame)) => {
                this.idle.as_mut().reset(Instant::now() + this.silence);
                this.finish_at_end();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => this.fail(Outcome::Broken, RelayError::Broken(error)),
            None => {
                this.end(Outcome::Ok);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.frames.is_empty() && self.held.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held: u64 = self.held.frames.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let rest = self.held.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}

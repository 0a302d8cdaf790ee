//! The beginning of an answer, held back until it is known to be an answer and not an error in an answer's dress.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use vllm_wire::openai::{EngineError, error_in, event_data, is_announcement};

use crate::sse::Blocks;

/// A first event longer than this is let through unread.
const MAX_HELD: usize = 256 * 1024;
/// After so many bytes of comments and announcements an answer goes on unread.
const MAX_BEFORE: usize = 1024 * 1024;

/// An answer whose beginning has come.
#[derive(Debug)]
pub(crate) struct Held {
    pub(super) frames: Frames,
    pub(super) rest: Body,
    pub(super) is_stream: bool,
}

/// Frames that have come: one, mostly, which stands for itself.
#[derive(Debug, Default)]
pub(super) struct Frames {
    first: Option<Frame<Bytes>>,
    /// Empty while there is no first.
    more: VecDeque<Frame<Bytes>>,
}

impl Frames {
    fn push(&mut self, frame: Frame<Bytes>) {
        match self.first {
            None => self.first = Some(frame),
            Some(_) => self.more.push_back(frame),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Frame<Bytes>> {
        let next = self.more.pop_front();
        std::mem::replace(&mut self.first, next)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Bytes of data in them.
    pub(super) fn bytes(&self) -> u64 {
        self.first.iter().chain(&self.more).filter_map(Frame::data_ref).map(|data| data.len() as u64).sum()
    }
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("the first event is an error")]
    ErrorEvent(#[from] ErrorEvent),
    #[error("the answer ends before its first event")]
    Empty,
    #[error("the answer breaks off before its first event")]
    Broken(#[source] axum::Error),
}

/// An error that an engine sends as the first event of a stream, under the status 200.
#[derive(Debug, thiserror::Error)]
#[error("the engine reports an error")]
pub(crate) struct ErrorEvent {
    #[source]
    pub(crate) error: EngineError,
    /// The JSON object that it came in.
    pub(crate) body: Vec<u8>,
}

impl ErrorEvent {
    /// The status that the engine would have answered with, had it known in time.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        self.error.code.parse().ok().filter(|status: &StatusCode| status.as_u16() >= 400)
    }
}

impl Held {
    /// An answer that goes on whatever it is.
    pub(crate) fn unread(body: Body) -> Self {
        Self { frames: Frames::default(), rest: body, is_stream: false }
    }

    /// A stream of events that begins well for certain.
    pub(crate) fn events(body: Body) -> Self {
        Self { frames: Frames::default(), rest: body, is_stream: true }
    }

    /// Whether it is a stream of events.
    pub(crate) fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Waits for the first event (of a stream) or the first bytes (otherwise).
    pub(crate) async fn first(mut body: Body, is_stream: bool) -> Result<Self, NoAnswer> {
        let mut frames = Frames::default();
        let (mut blocks, mut held) = (Blocks::default(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(NoAnswer::Broken)?;
            let data: &[u8] = frame.data_ref().filter(|_| is_stream).map_or(&[], |data| data);
            blocks.push(data);
            held += data.len();
            frames.push(frame);
            if !is_stream || blocks.waiting() > MAX_HELD || is_answered(&mut blocks)? || held > MAX_BEFORE {
                return Ok(Self { frames, rest: body, is_stream });
            }
        }
        if is_stream { Err(NoAnswer::Empty) } else { Ok(Self { frames, rest: body, is_stream }) }
    }
}

/// All of it, the held beginning included.
impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.frames.pop() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }
}

/// Whether the first event of an answer is here and no error; comments before it are passed over, and announcements of one.
fn is_answered(blocks: &mut Blocks) -> Result<bool, ErrorEvent> {
    while let Some(event) = blocks.next() {
        let body = event_data(event);
        if let Some(error) = error_in(&body) {
            return Err(ErrorEvent { error, body });
        }
        if !body.is_empty() && !is_announcement(&body) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};

    use super::*;

    #[tokio::test]
    async fn comments_without_an_end_are_not_kept_without_an_end() {
        let comments = Bytes::from(b": still at it\n\n".repeat(1000));
        let size = comments.len();
        let pieces = stream::repeat(comments).take(1000).map(Ok::<_, Infallible>);
        let held = Held::first(Body::from_stream(pieces), true).await.unwrap();
        assert!((1..=MAX_BEFORE + size).contains(&usize::try_from(held.frames.bytes()).unwrap()));
    }
}

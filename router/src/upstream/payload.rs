//! The body of a request to an engine or a sidecar: a few pieces of memory that are sent one after the other, so that a large
//! body that was edited is still there only once.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use vllm_wire::body::Pieces;

/// Bytes in pieces, of a known length together. Most have one piece only.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    /// Empty only when nothing is left.
    next: Bytes,
    /// What follows, the piece after the next last; none is empty.
    rest: Vec<Bytes>,
}

impl From<Bytes> for Payload {
    fn from(next: Bytes) -> Self {
        Self { next, rest: Vec::new() }
    }
}

impl From<Pieces> for Payload {
    fn from(pieces: Pieces) -> Self {
        let (mut next, mut rest) = pieces.into_parts();
        rest.retain(|piece| !piece.is_empty());
        rest.reverse();
        if next.is_empty() {
            next = rest.pop().unwrap_or_default();
        }
        Self { next, rest }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let after = self.rest.pop().unwrap_or_default();
        let piece = std::mem::replace(&mut self.next, after);
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.iter().map(|piece| piece.len() as u64).sum::<u64>() + self.next.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use vllm_wire::body::without_params;

    use super::*;

    #[tokio::test]
    async fn pieces_come_in_order_and_their_length_is_known() {
        // Long enough to be cut up: the parameters go, and what stands before and after them stays where it is.
        let text = format!(r#"{{"a":"{}","kv_transfer_params":1,"b":2}}"#, "x".repeat(100_000));
        let pieces = without_params(&Bytes::from(text.clone())).unwrap();
        assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 1);
        let payload = Payload::from(pieces);
        assert_eq!(payload.size_hint().exact(), Some(text.len() as u64 - 23));
        assert_eq!(payload.collect().await.unwrap().to_bytes(), text.replace(r#","kv_transfer_params":1"#, ""));
        let payload = Payload::from(Bytes::from_static(b"one"));
        assert_eq!(payload.size_hint().exact(), Some(3));
        assert_eq!(payload.collect().await.unwrap().to_bytes(), "one");
        assert!(Payload::default().is_end_stream() && Payload::from(Bytes::new()).is_end_stream());
        assert!(Payload::from(Pieces::default()).is_end_stream());
    }
}

//! The body of a request to an engine or a sidecar: a few pieces of memory that are sent one after the other, so that a large
//! body that was edited is still there only once.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Bytes in pieces, of a known length together.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    /// The next piece last.
    pieces: Vec<Bytes>,
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        vec![bytes].into()
    }
}

impl From<Vec<Bytes>> for Payload {
    fn from(mut pieces: Vec<Bytes>) -> Self {
        pieces.retain(|piece| !piece.is_empty());
        pieces.reverse();
        Self { pieces }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.pieces.pop().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.pieces.iter().map(|piece| piece.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn pieces_come_in_order_and_their_length_is_known() {
        let payload = Payload::from(["ab", "", "cde"].map(Bytes::from).to_vec());
        assert_eq!(payload.size_hint().exact(), Some(5));
        assert_eq!(payload.collect().await.unwrap().to_bytes(), "abcde");
        assert!(Payload::default().is_end_stream() && Payload::from(Bytes::new()).is_end_stream());
    }
}

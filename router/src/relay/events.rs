//! A stream goes on event by event: what has come of an event that is not whole yet waits for its rest, so that an answer that
//! breaks off can always be ended in words that the client understands.

use bytes::{Bytes, BytesMut};

/// Of an event that is longer than this, the beginning goes on before its end has come.
const MAX_TORN: usize = 256 * 1024;

/// Cuts a stream at the ends of its events.
#[derive(Debug, Default)]
pub(super) struct WholeEvents {
    torn: BytesMut,
    /// The beginning of an event has gone on without its end.
    midway: bool,
}

impl WholeEvents {
    /// What may go on now that these bytes have come; bytes that end with an event's end go on as they are.
    pub(super) fn pass(&mut self, data: Bytes) -> Option<Bytes> {
        if self.torn.is_empty() && ends_event(&data) {
            self.midway = false;
            return Some(data);
        }
        self.torn.extend_from_slice(&data);
        if let Some(end) = last_end(&self.torn) {
            self.midway = false;
            return Some(self.torn.split_to(end).freeze());
        }
        (self.torn.len() > MAX_TORN).then(|| {
            self.midway = true;
            self.torn.split().freeze()
        })
    }

    /// What has not gone on yet.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        (!self.torn.is_empty()).then(|| self.torn.split().freeze())
    }

    /// Whether the client is between two events.
    pub(super) fn is_between(&self) -> bool {
        !self.midway
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.torn.is_empty()
    }
}

fn ends_event(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\r\n\r\n") || bytes.ends_with(b"\r\r")
}

fn last_end(bytes: &[u8]) -> Option<usize> {
    (1..=bytes.len()).rev().find(|end| bytes.get(..*end).is_some_and(ends_event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_events_go_on_and_nothing_is_lost() {
        let text = b"data: 1\n\ndata: 2\r\n\r\ndata: 3\r\rdata: 4";
        for piece in 1..=text.len() {
            let mut events = WholeEvents::default();
            let mut seen = Vec::new();
            for bytes in text.chunks(piece) {
                if let Some(bytes) = events.pass(Bytes::copy_from_slice(bytes)) {
                    assert!(ends_event(&bytes), "pieces of {piece}");
                    seen.extend_from_slice(&bytes);
                }
            }
            assert_eq!(events.rest().unwrap(), "data: 4");
            seen.extend_from_slice(b"data: 4");
            assert_eq!(seen, text);
        }
    }

    #[test]
    fn an_endless_event_goes_on_in_pieces() {
        let mut events = WholeEvents::default();
        let piece = Bytes::from(vec![b'x'; MAX_TORN]);
        assert_eq!(events.pass(piece.clone()), None);
        assert_eq!(events.pass(piece).unwrap().len(), 2 * MAX_TORN);
        assert!(!events.is_between());
        assert_eq!(events.pass(Bytes::from_static(b"y\n\n")).unwrap(), "y\n\n");
        assert!(events.is_between() && events.is_empty());
    }
}

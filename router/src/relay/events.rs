//! A stream goes on event by event: what has come of an event that is not whole yet waits for its rest, so that an answer that
//! breaks off can always be ended in words that the client understands.

use bytes::{Bytes, BytesMut};

use crate::sse::{ends_block, last_end};

/// Of an event that is longer than this, the beginning goes on before its end has come.
const MAX_TORN: usize = 256 * 1024;

/// Cuts a stream at the ends of its events.
#[derive(Debug, Default)]
pub(crate) struct WholeEvents {
    torn: BytesMut,
    /// So many bytes of it hold no end: they are not looked at again, however many pieces an event comes in.
    looked: usize,
    #[cfg(test)]
    work: usize,
    /// The beginning of an event has gone on without its end.
    midway: bool,
}

impl WholeEvents {
    /// What may go on now that these bytes have come; bytes that end with an event's end go on as they are.
    pub(crate) fn pass(&mut self, data: Bytes) -> Option<Bytes> {
        if self.torn.is_empty() && ends_block(&data) {
            self.midway = false;
            return Some(data);
        }
        self.torn.extend_from_slice(&data);
        let end = last_end(&self.torn, self.looked);
        #[cfg(test)]
        (self.work += self.torn.len() - end.unwrap_or(self.looked));
        let goes_on = end.or_else(|| (self.torn.len() > MAX_TORN).then_some(self.torn.len()));
        self.looked = self.torn.len() - goes_on.unwrap_or(0);
        goes_on.map(|goes_on| {
            self.midway = end.is_none();
            self.torn.split_to(goes_on).freeze()
        })
    }

    /// What has not gone on yet.
    pub(crate) fn rest(&mut self) -> Option<Bytes> {
        self.looked = 0;
        (!self.torn.is_empty()).then(|| self.torn.split().freeze())
    }

    /// Whether the client is between two events.
    pub(crate) fn is_between(&self) -> bool {
        !self.midway
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.torn.is_empty()
    }
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
                    assert!(ends_block(&bytes), "pieces of {piece}");
                    seen.extend_from_slice(&bytes);
                }
            }
            assert_eq!(events.rest().unwrap(), "data: 4");
            seen.extend_from_slice(b"data: 4");
            assert_eq!(seen, text);
        }
    }

    #[test]
    fn each_byte_of_a_long_event_is_looked_at_once() {
        let text = [&b"data: "[..], &[b'x'; MAX_TORN - 16], b"\n\ndata: "].concat();
        let mut events = WholeEvents::default();
        let passed: Vec<_> = text.iter().filter_map(|byte| events.pass(Bytes::copy_from_slice(&[*byte]))).collect();
        assert_eq!((passed.len(), passed[0].len()), (1, text.len() - 6));
        assert!(events.work <= text.len(), "{} of {} bytes", events.work, text.len());
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

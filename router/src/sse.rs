//! Server-sent events, as far as the router reads them: where one ends, and what its `event` and `data` are.

/// Longest event that is kept while its end has not come.
const MAX_EVENT: usize = 1 << 20;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: String,
}

/// An event longer than what is kept.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an event of more than {MAX_EVENT} bytes")]
pub(crate) struct TooLong;

/// Cuts a byte stream into events.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    buffer: Vec<u8>,
}

impl Splitter {
    /// Takes the next bytes in.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.buffer.len() + bytes.len() > MAX_EVENT {
            return Err(TooLong);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole event that carries data; comments and empty blocks are skipped.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        while let Some(end) = end_of_block(&self.buffer) {
            let block: Vec<u8> = self.buffer.drain(..end).collect();
            if let Some(event) = parse(&block) {
                return Some(event);
            }
        }
        None
    }
}

/// Length of the first block including the empty line that ends it.
pub(crate) fn end_of_block(bytes: &[u8]) -> Option<usize> {
    let lf = bytes.windows(2).position(|pair| pair == b"\n\n").map(|at| at + 2);
    let crlf = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    match (lf, crlf) {
        (Some(lf), Some(crlf)) => Some(lf.min(crlf)),
        (end, None) | (None, end) => end,
    }
}

fn parse(block: &[u8]) -> Option<Event> {
    let text = String::from_utf8_lossy(block);
    let mut name = "message";
    let mut data: Option<String> = None;
    for line in text.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => name = value,
            "data" => match &mut data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => data = Some(value.to_owned()),
            },
            _ => {}
        }
    }
    data.map(|data| Event { name: name.to_owned(), data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_whatever_the_pieces_they_arrive_in() {
        let text = b": hello\n\nevent: rank\nid: 4\ndata: {\"a\":1}\n\ndata: x\r\ndata: y\r\n\r\nevent: torn";
        for piece in 1..text.len() {
            let mut splitter = Splitter::default();
            let mut seen = Vec::new();
            for bytes in text.chunks(piece) {
                splitter.push(bytes).unwrap();
                seen.extend(std::iter::from_fn(|| splitter.next_event()));
            }
            let event = |name: &str, data: &str| Event { name: name.to_owned(), data: data.to_owned() };
            assert_eq!(seen, [event("rank", "{\"a\":1}"), event("message", "x\ny")], "pieces of {piece}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut splitter = Splitter::default();
        splitter.push(&vec![b'x'; MAX_EVENT]).unwrap();
        assert_eq!(splitter.push(b"x"), Err(TooLong));
    }
}

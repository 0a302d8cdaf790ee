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
    blocks: Blocks,
}

impl Splitter {
    /// Takes the next bytes in.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.blocks.waiting() + bytes.len() > MAX_EVENT {
            return Err(TooLong);
        }
        self.blocks.push(bytes);
        Ok(())
    }

    /// The next whole event that carries data; comments and empty blocks are skipped.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = parse(self.blocks.next()?) {
                return Some(event);
            }
        }
    }
}

/// The blocks of a stream as it comes, each with the empty line that ends it. Each byte is looked at once and moved once at most, however
/// many pieces or blocks there are: whoever sends them would else choose how much work they make.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    buffer: Vec<u8>,
    /// Where what has not been given out begins.
    start: usize,
    /// Up to here there is no end behind `start`.
    looked: usize,
    #[cfg(test)]
    work: usize,
}

impl Blocks {
    /// Takes the next bytes in.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        #[cfg(test)]
        (self.work += if self.start > 0 { self.waiting() } else { 0 });
        self.buffer.drain(..self.start);
        self.looked -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole block.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        let waiting = self.buffer.get(self.start..).unwrap_or_default();
        let from = self.looked - self.start;
        let end = first_end(waiting, from);
        let looked = end.unwrap_or(waiting.len());
        #[cfg(test)]
        (self.work += looked - from);
        self.looked = self.start + looked;
        self.start += end?;
        waiting.get(..looked)
    }

    /// Bytes that have not been given out.
    pub(crate) fn waiting(&self) -> usize {
        self.buffer.len() - self.start
    }
}

/// The first place behind `from` where a block ends.
fn first_end(bytes: &[u8], from: usize) -> Option<usize> {
    let line_ends = memchr::memchr2_iter(b'\n', b'\r', bytes.get(from..).unwrap_or_default());
    line_ends.map(|at| from + at + 1).find(|end| bytes.get(..*end).is_some_and(ends_block))
}

/// The last place behind `from` where a block ends.
pub(crate) fn last_end(bytes: &[u8], from: usize) -> Option<usize> {
    let line_ends = memchr::memrchr2_iter(b'\n', b'\r', bytes.get(from..).unwrap_or_default());
    line_ends.map(|at| from + at + 1).find(|end| bytes.get(..*end).is_some_and(ends_block))
}

/// Whether these bytes end with an empty line.
pub(crate) fn ends_block(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\r\n\r\n") || bytes.ends_with(b"\r\r")
}

fn parse(block: &[u8]) -> Option<Event> {
    let text = String::from_utf8_lossy(block);
    let mut name = "message";
    let mut data: Option<String> = None;
    for line in text.split(['\n', '\r']) {
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
        let text = b": hello\n\nevent: rank\nid: 4\ndata: {\"a\":1}\n\ndata: x\r\ndata: y\r\n\r\ndata: z\rdata:\r\revent: torn";
        for piece in 1..text.len() {
            let mut splitter = Splitter::default();
            let mut seen = Vec::new();
            for bytes in text.chunks(piece) {
                splitter.push(bytes).unwrap();
                seen.extend(std::iter::from_fn(|| splitter.next_event()));
            }
            let event = |name: &str, data: &str| Event { name: name.to_owned(), data: data.to_owned() };
            assert_eq!(
                seen,
                [event("rank", "{\"a\":1}"), event("message", "x\ny"), event("message", "z\n")],
                "pieces of {piece}"
            );
        }
    }

    #[test]
    fn each_byte_is_looked_at_once_whatever_the_pieces() {
        let long = [&b"data: "[..], &[b'x'; 100_000], b"\r\n\r\n"].concat();
        let many = b": a comment\n\ndata: an event\n\n\r\r".repeat(3000);
        for (text, blocks) in [(long, 1), (many, 9000)] {
            for piece in [1, 7, text.len()] {
                let mut seen = Blocks::default();
                let mut found = 0;
                for bytes in text.chunks(piece) {
                    seen.push(bytes);
                    found += std::iter::from_fn(|| seen.next().map(drop)).count();
                }
                assert_eq!((found, seen.waiting()), (blocks, 0), "pieces of {piece}");
                assert!(seen.work <= 2 * text.len(), "{} of {} bytes in pieces of {piece}", seen.work, text.len());
            }
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut splitter = Splitter::default();
        splitter.push(&vec![b'x'; MAX_EVENT]).unwrap();
        assert_eq!(splitter.push(b"x"), Err(TooLong));
    }
}

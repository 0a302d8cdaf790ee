//! The little of HTTP/1.1 that stubs and load generator read: where a head ends and how its body is framed.

use bytes::BytesMut;
use httparse::{EMPTY_HEADER, Header, Status};

/// Headers of one message that are read.
const MAX_HEADERS: usize = 64;

/// How a body's end is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It has so many bytes.
    Length(u64),
    /// It comes in chunks; the last is empty.
    Chunked,
}

/// A request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Bytes of the head.
    pub length: usize,
    /// The method is GET.
    pub is_get: bool,
    /// The method is DELETE.
    pub is_delete: bool,
    /// The path, with its query.
    pub path: String,
    /// How its body is framed.
    pub body: Framing,
}

/// A response's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Bytes of the head.
    pub length: usize,
    /// The status.
    pub status: u16,
    /// How its body is framed.
    pub body: Framing,
    /// The server ends the connection after it.
    pub closes: bool,
}

/// Why a message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not a head.
    #[error("read the head of a message")]
    Head(#[from] httparse::Error),
    /// Not a chunk's size.
    #[error("read the size of a chunk")]
    ChunkSize,
    /// Not a chunk's end.
    #[error("a chunk does not end where its size says")]
    ChunkEnd,
}

/// A whole head at the beginning of `buffer`; `None` while more of it must come.
///
/// # Errors
/// [`Malformed`] for what is no head.
pub fn request_head(buffer: &[u8]) -> Result<Option<RequestHead>, Malformed> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Status::Complete(length) = request.parse(buffer)? else { return Ok(None) };
    let (method, path) = (request.method.unwrap_or_default(), request.path.unwrap_or_default().to_owned());
    let (is_get, is_delete) = (method == "GET", method == "DELETE");
    Ok(Some(RequestHead { length, is_get, is_delete, path, body: framing(request.headers) }))
}

/// A whole head at the beginning of `buffer`; `None` while more of it must come.
///
/// # Errors
/// [`Malformed`] for what is no head.
pub fn response_head(buffer: &[u8]) -> Result<Option<ResponseHead>, Malformed> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let Status::Complete(length) = response.parse(buffer)? else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    let closes = value(response.headers, "connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
    Ok(Some(ResponseHead { length, status, body: framing(response.headers), closes }))
}

fn value<'a>(headers: &[Header<'a>], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

fn framing(headers: &[Header<'_>]) -> Framing {
    if value(headers, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case(b"chunked")) {
        return Framing::Chunked;
    }
    let length = value(headers, "content-length").and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    Framing::Length(length.unwrap_or(0))
}

/// What the bytes at the beginning of a buffer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Size,
    Data(u64),
    /// The line end after a chunk's data.
    DataEnd,
    /// The line end after the last chunk (there are no trailers here).
    Last,
    Done,
}

/// Reads one body out of a connection's buffer and counts its server-sent events.
#[derive(Debug)]
pub struct BodyReader {
    part: Part,
    chunked: bool,
    /// Events that have ended.
    pub events: u64,
    newline_before: bool,
}

impl BodyReader {
    /// A body that is framed so.
    pub fn new(framing: Framing) -> Self {
        let (part, chunked) = match framing {
            Framing::Length(0) => (Part::Done, false),
            Framing::Length(length) => (Part::Data(length), false),
            Framing::Chunked => (Part::Size, true),
        };
        Self { part, chunked, events: 0, newline_before: false }
    }

    /// Takes the body's bytes out of `buffer`; says whether that was all of it.
    ///
    /// # Errors
    /// [`Malformed`] for chunks that are none.
    pub fn take(&mut self, buffer: &mut BytesMut) -> Result<bool, Malformed> {
        loop {
            match self.part {
                Part::Done => return Ok(true),
                Part::Size => {
                    let Some(end) = memchr::memchr(b'\n', buffer) else { return Ok(false) };
                    let line = buffer.split_to(end + 1);
                    let size = std::str::from_utf8(&line).ok().and_then(|line| line.split([';', '\r']).next());
                    let size = size.and_then(|size| u64::from_str_radix(size.trim(), 16).ok());
                    self.part = match size.ok_or(Malformed::ChunkSize)? {
                        0 => Part::Last,
                        size => Part::Data(size),
                    };
                }
                Part::Data(left) => {
                    let here = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if here == 0 {
                        return Ok(false);
                    }
                    let data = buffer.split_to(here);
                    self.count_events(&data);
                    self.part = match (left.saturating_sub(u64::try_from(here).unwrap_or(u64::MAX)), self.chunked) {
                        (0, true) => Part::DataEnd,
                        (0, false) => Part::Done,
                        (left, _) => Part::Data(left),
                    };
                }
                Part::DataEnd | Part::Last => {
                    if buffer.len() < 2 {
                        return Ok(false);
                    }
                    if *buffer.split_to(2) != *b"\r\n" {
                        return Err(Malformed::ChunkEnd);
                    }
                    self.part = if self.part == Part::Last { Part::Done } else { Part::Size };
                }
            }
        }
    }

    /// An event ends with an empty line; the two line ends may come in two pieces.
    fn count_events(&mut self, data: &[u8]) {
        for at in memchr::memchr_iter(b'\n', data) {
            let before = match at.checked_sub(1) {
                Some(before) => data.get(before) == Some(&b'\n'),
                None => self.newline_before,
            };
            self.events += u64::from(before);
        }
        self.newline_before = data.last() == Some(&b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_comes_whole_whatever_the_pieces_it_arrives_in() {
        let text = b"9\r\ndata: a\n\n\r\nA;x=1\r\ndata: bb\n\n\r\n0\r\n\r\nnext";
        for piece in 1..text.len() {
            let (mut reader, mut buffer) = (BodyReader::new(Framing::Chunked), BytesMut::new());
            let mut done = false;
            for bytes in text.chunks(piece) {
                buffer.extend_from_slice(bytes);
                done |= reader.take(&mut buffer).unwrap();
            }
            assert!(done && reader.events == 2 && *buffer == *b"next", "pieces of {piece}: {reader:?} {buffer:?}");
        }
    }

    #[test]
    fn a_sized_body_ends_with_its_last_byte() {
        let (mut reader, mut buffer) = (BodyReader::new(Framing::Length(3)), BytesMut::from(&b"abcd"[..]));
        assert!(reader.take(&mut buffer).unwrap());
        assert_eq!(*buffer, *b"d");
    }
}

//! One kept connection and its exchanges.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::message::{BodyReader, Framing, Malformed, ResponseHead, response_head};

/// Opened when it is needed.
#[derive(Debug)]
pub struct Connection {
    to: SocketAddr,
    stream: Option<TcpStream>,
    buffer: BytesMut,
}

/// An answer that came whole.
#[derive(Clone, Copy, Debug)]
pub struct Exchanged {
    /// When its first bytes after the head came.
    pub first: Instant,
    /// Server-sent events in it.
    pub events: u64,
}

/// Why an answer did not.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The answer is none that is wanted.
    #[error("status {0}")]
    Status(u16),
    /// The server has closed the connection.
    #[error("the connection ends before the answer")]
    Closed,
    /// The connection broke.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// It is not HTTP.
    #[error("answer: {0}")]
    Malformed(#[from] Malformed),
}

impl Connection {
    /// A connection to be.
    pub fn new(to: SocketAddr) -> Self {
        Self { to, stream: None, buffer: BytesMut::new() }
    }

    /// Closes it; the next exchange opens another.
    pub fn close(&mut self) {
        self.stream = None;
        self.buffer.clear();
    }

    /// Sends a request and takes its answer, of which only the events are counted.
    ///
    /// # Errors
    /// [`ExchangeError`], also for any status but 200.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Exchanged, ExchangeError> {
        let head = self.begin(request).await?;
        let (Some(stream), buffer) = (&mut self.stream, &mut self.buffer) else { return Err(ExchangeError::Closed) };
        let mut body = BodyReader::new(head.body);
        let mut first = None;
        while {
            if !buffer.is_empty() {
                first.get_or_insert_with(Instant::now);
            }
            !body.take(buffer)?
        } {
            read(stream, buffer).await?;
        }
        self.end(head)?;
        Ok(Exchanged { first: first.unwrap_or_else(Instant::now), events: body.events })
    }

    /// Sends a request and takes its answer, whose body must be of a known length.
    ///
    /// # Errors
    /// [`ExchangeError`], also for any status but 200.
    pub async fn fetch(&mut self, request: &[u8]) -> Result<Bytes, ExchangeError> {
        let head = self.begin(request).await?;
        let (Some(stream), buffer) = (&mut self.stream, &mut self.buffer) else { return Err(ExchangeError::Closed) };
        let Framing::Length(length) = head.body else { return Err(Malformed::ChunkSize.into()) };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        while buffer.len() < length {
            read(stream, buffer).await?;
        }
        let body = buffer.split_to(length).freeze();
        self.end(head)?;
        Ok(body)
    }

    /// Sends a request whose answer says no more than that it was done.
    ///
    /// # Errors
    /// [`ExchangeError`], also for any status but 204.
    pub async fn let_go(&mut self, request: &[u8]) -> Result<(), ExchangeError> {
        let head = self.begin(request).await?;
        if head.status == 204 { Ok(()) } else { Err(ExchangeError::Status(head.status)) }
    }

    /// Sends a request and takes the head of its answer.
    async fn begin(&mut self, request: &[u8]) -> Result<ResponseHead, ExchangeError> {
        let buffer = &mut self.buffer;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let fresh = TcpStream::connect(self.to).await?;
                fresh.set_nodelay(true)?;
                self.stream.insert(fresh)
            }
        };
        stream.write_all(request).await?;
        let head = loop {
            read(stream, buffer).await?;
            if let Some(head) = response_head(buffer)? {
                break head;
            }
        };
        drop(buffer.split_to(head.length));
        Ok(head)
    }

    fn end(&mut self, head: ResponseHead) -> Result<(), ExchangeError> {
        if head.closes {
            self.close();
        }
        if head.status == 200 { Ok(()) } else { Err(ExchangeError::Status(head.status)) }
    }
}

async fn read(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<(), ExchangeError> {
    buffer.reserve(16 * 1024);
    if stream.read_buf(buffer).await? == 0 {
        return Err(ExchangeError::Closed);
    }
    Ok(())
}

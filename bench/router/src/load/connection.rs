//! One kept connection and its exchanges.

use std::io;
use std::net::SocketAddr;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::message::{BodyReader, Malformed, response_head};

/// Opened when it is needed.
#[derive(Debug)]
pub(super) struct Connection {
    to: SocketAddr,
    stream: Option<TcpStream>,
    buffer: BytesMut,
}

/// An answer that came whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchanged {
    /// When its first bytes after the head came.
    pub(super) first: Instant,
    /// Server-sent events in it.
    pub(super) events: u64,
}

/// Why an answer did not.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("status {0}")]
    Status(u16),
    #[error("the connection ends before the answer")]
    Closed,
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("answer: {0}")]
    Malformed(#[from] Malformed),
}

impl Connection {
    pub(super) fn new(to: SocketAddr) -> Self {
        Self { to, stream: None, buffer: BytesMut::new() }
    }

    pub(super) fn close(&mut self) {
        self.stream = None;
        self.buffer.clear();
    }

    pub(super) async fn exchange(&mut self, request: &[u8]) -> Result<Exchanged, ExchangeError> {
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
        if head.closes {
            self.close();
        }
        if head.status != 200 {
            return Err(ExchangeError::Status(head.status));
        }
        Ok(Exchanged { first: first.unwrap_or_else(Instant::now), events: body.events })
    }
}

async fn read(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<(), ExchangeError> {
    buffer.reserve(16 * 1024);
    if stream.read_buf(buffer).await? == 0 {
        return Err(ExchangeError::Closed);
    }
    Ok(())
}

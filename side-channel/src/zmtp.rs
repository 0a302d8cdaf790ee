//! ZMTP 3.0 with the NULL mechanism, as far as a `REQ`, a `ROUTER` and a `SUB` need it (ZeroMQ RFC 23), every length bounded.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const GREETING_LEN: usize = 64;
const MORE: u8 = 0b001;
const LONG: u8 = 0b010;
const COMMAND: u8 = 0b100;
const RESERVED: u8 = !(MORE | LONG | COMMAND);
/// The most bytes of a command that we read: `READY` has about 40.
const MAX_COMMAND: u64 = 1024;
/// The most commands (heartbeats) between two messages.
const MAX_COMMANDS_IN_A_ROW: usize = 64;

/// Why two peers cannot talk ZMTP.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection ended.
    #[error("the peer closed the connection")]
    Closed,
    /// The system reports an error.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// The first bytes are no ZMTP greeting.
    #[error("the peer does not speak ZMTP")]
    NotZmtp,
    /// An older version of the protocol.
    #[error("the peer speaks ZMTP {0}, 3 or later is needed")]
    Version(u8),
    /// A security mechanism that we do not have.
    #[error("the peer wants another security mechanism than NULL")]
    Mechanism,
    /// Not a socket that fits ours.
    #[error("the peer's socket type does not fit a {ours}")]
    SocketType {
        /// What this side is.
        ours: &'static str,
    },
    /// The peer refused us.
    #[error("the peer refused the connection with an ERROR command")]
    Refused,
    /// A command that is not allowed or not complete.
    #[error("the peer sent a command that is not allowed here")]
    Command,
    /// Flag bits that ZMTP 3 reserves.
    #[error("the peer sent a frame with unknown flags")]
    Flags,
    /// A message over the limit.
    #[error("the peer announced {announced} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes of this frame.
        announced: u64,
        /// Bytes left for the message.
        limit: u64,
    },
    /// A message of too many frames.
    #[error("the peer sent a message of more than {0} frames")]
    TooManyFrames(usize),
    /// A message that is not `[topic, number, payload]`.
    #[error("the peer's message is not a numbered one")]
    NotNumbered,
    /// An answer without the empty delimiter frame.
    #[error("the peer's answer has no delimiter frame")]
    NoDelimiter,
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        // Only these kinds mean that the peer has gone; every other one is the system's.
        let gone = [
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::ConnectionAborted,
        ];
        if gone.contains(&error.kind()) { Self::Closed } else { Self::Io(error) }
    }
}

/// What this side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketType {
    Req,
    Router,
    Sub,
}

impl SocketType {
    fn name(self) -> &'static str {
        match self {
            Self::Req => "REQ",
            Self::Router => "ROUTER",
            Self::Sub => "SUB",
        }
    }

    fn fits(self, peer: &[u8]) -> bool {
        match self {
            Self::Req => matches!(peer, b"REP" | b"ROUTER"),
            Self::Router => matches!(peer, b"REQ" | b"DEALER" | b"ROUTER"),
            Self::Sub => matches!(peer, b"PUB" | b"XPUB"),
        }
    }
}

/// What one message may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MessageLimits {
    pub(crate) bytes: u64,
    pub(crate) frames: usize,
}

/// One greeted connection.
pub(crate) struct Connection<S> {
    stream: S,
    limits: MessageLimits,
}

struct Header {
    flags: u8,
    len: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Exchanges greetings and `READY`. Not cancel safe: the stream is of no use when it is dropped half-way.
    pub(crate) async fn greet(mut stream: S, ours: SocketType, limits: MessageLimits) -> Result<Self, WireError> {
        stream.write_all(&greeting()).await?;
        let mut theirs = [0_u8; GREETING_LEN];
        // The signature first: who speaks HTTP by mistake sends less than a greeting and waits.
        let (signature, rest) = theirs.split_at_mut(10);
        stream.read_exact(signature).await?;
        if signature.first() != Some(&0xff) || signature.last().is_none_or(|byte| byte & 1 == 0) {
            return Err(WireError::NotZmtp);
        }
        stream.read_exact(rest).await?;
        let major = rest.first().copied().unwrap_or(0);
        if major < 3 {
            return Err(WireError::Version(major));
        }
        let mut null = [0_u8; 20];
        for (to, from) in null.iter_mut().zip(b"NULL") {
            *to = *from;
        }
        if rest.get(2..22) != Some(&null) {
            return Err(WireError::Mechanism);
        }
        let mut connection = Self { stream, limits };
        connection.stream.write_all(&ready(ours)).await?;
        let header = connection.header().await?;
        if header.flags & COMMAND == 0 {
            return Err(WireError::Command);
        }
        let command = connection.command_body(&header).await?;
        let Some(properties) = command.strip_prefix(b"\x05READY") else {
            let refused = command.starts_with(b"\x05ERROR");
            return Err(if refused { WireError::Refused } else { WireError::Command });
        };
        let peer = property(properties, b"socket-type").ok_or(WireError::Command)?;
        if ours.fits(peer) { Ok(connection) } else { Err(WireError::SocketType { ours: ours.name() }) }
    }

    /// The frames of the next message, delimiter included; commands in between are answered or skipped. Not cancel safe.
    pub(crate) async fn receive(&mut self) -> Result<Vec<Bytes>, WireError> {
        let mut frames = Vec::new();
        let mut left = self.limits.bytes;
        let mut commands = 0;
        loop {
            let header = self.header().await?;
            if header.flags & COMMAND != 0 {
                commands += 1;
                if commands > MAX_COMMANDS_IN_A_ROW {
                    return Err(WireError::Command);
                }
                self.heartbeat(&header).await?;
                continue;
            }
            if frames.len() >= self.limits.frames {
                return Err(WireError::TooManyFrames(self.limits.frames));
            }
            left = left.checked_sub(header.len).ok_or(WireError::TooLarge { announced: header.len, limit: left })?;
            frames.push(self.body(header.len).await?);
            if header.flags & MORE == 0 {
                return Ok(frames);
            }
        }
    }

    /// Sends one message of these frames. Not cancel safe.
    pub(crate) async fn send(&mut self, frames: &[Bytes]) -> Result<(), WireError> {
        let mut out = BytesMut::new();
        for (index, frame) in frames.iter().enumerate() {
            let more = if index + 1 < frames.len() { MORE } else { 0 };
            put_frame(&mut out, more, frame);
        }
        self.stream.write_all(&out).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn header(&mut self) -> Result<Header, WireError> {
        let flags = self.stream.read_u8().await?;
        if flags & RESERVED != 0 || (flags & COMMAND != 0 && flags & MORE != 0) {
            return Err(WireError::Flags);
        }
        let len =
            if flags & LONG == 0 { u64::from(self.stream.read_u8().await?) } else { self.stream.read_u64().await? };
        Ok(Header { flags, len })
    }

    /// Reads a body whose length has been checked; memory grows with what arrives, not with what was announced.
    async fn body(&mut self, len: u64) -> Result<Bytes, WireError> {
        let mut body = Vec::new();
        let read = (&mut self.stream).take(len).read_to_end(&mut body).await?;
        if u64::try_from(read).ok() == Some(len) { Ok(body.into()) } else { Err(WireError::Closed) }
    }

    async fn command_body(&mut self, header: &Header) -> Result<Bytes, WireError> {
        if header.len > MAX_COMMAND {
            return Err(WireError::TooLarge { announced: header.len, limit: MAX_COMMAND });
        }
        self.body(header.len).await
    }

    /// A ZMTP 3.1 peer may ping (2 bytes of lifetime, then a context to be echoed); anything else is skipped.
    async fn heartbeat(&mut self, header: &Header) -> Result<(), WireError> {
        let command = self.command_body(header).await?;
        let context = command.strip_prefix(b"\x04PING").and_then(|ping| ping.get(2..));
        let Some(context) = context else { return Ok(()) };
        let mut pong = b"\x04PONG".to_vec();
        pong.extend_from_slice(context);
        let mut out = BytesMut::new();
        put_frame(&mut out, COMMAND, &pong);
        self.stream.write_all(&out).await?;
        Ok(())
    }
}

fn greeting() -> [u8; GREETING_LEN] {
    let mut greeting = [0_u8; GREETING_LEN];
    let head = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL";
    for (to, from) in greeting.iter_mut().zip(head) {
        *to = *from;
    }
    greeting
}

fn ready(ours: SocketType) -> BytesMut {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", ours.name()), ("Identity", "")] {
        body.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        body.extend_from_slice(name.as_bytes());
        body.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        body.extend_from_slice(value.as_bytes());
    }
    let mut out = BytesMut::new();
    put_frame(&mut out, COMMAND, &body);
    out
}

fn put_frame(out: &mut BytesMut, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(short) => {
            out.put_u8(flags);
            out.put_u8(short);
        }
        Err(_) => {
            out.put_u8(flags | LONG);
            out.put_u64(u64::try_from(body.len()).unwrap_or(u64::MAX));
        }
    }
    out.extend_from_slice(body);
}

/// The value of one metadata property; names compare without case (RFC 23).
fn property<'a>(mut properties: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    loop {
        let (name_len, rest) = properties.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*name_len))?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*value_len)).ok()?)?;
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        properties = rest;
    }
}

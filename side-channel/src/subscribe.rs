//! Numbered messages of a publisher: live from its `PUB` socket, or repeated from its `ROUTER` socket. vLLM's KV events come so
//! (`docs/vllm-nixl-protocol.md` §6): frames `[topic, number as 8 bytes big-endian, payload]`.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::channel::{AskError, Endpoint, Step};
use crate::zmtp::{Connection, MessageLimits, SocketType, WireError};

/// Frames of one message: topic, number, payload, and the delimiter of a repeated one.
const MAX_FRAMES: usize = 4;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Counts from 0 with the publisher's start, by one.
    pub number: u64,
    /// What it says.
    pub payload: Bytes,
}

/// Live messages.
pub struct Subscription {
    endpoint: Endpoint,
    connection: Connection<TcpStream>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Subscription {
    /// Subscribes to everything, within `deadline`. `bytes` bounds one message.
    ///
    /// # Errors
    /// [`AskError`], when nobody is there or speaks something else.
    pub async fn open(to: &Endpoint, bytes: u64, deadline: Duration) -> Result<Self, AskError> {
        let mut connection = connect(to, SocketType::Sub, bytes, deadline).await?;
        // ZMTP 3.0 subscribes with a message: 1, then the beginning of the topics, here any.
        let sent = timeout(deadline, connection.send(&[Bytes::from_static(b"\x01")])).await;
        sent.map_err(|_| late(to, Step::Greet, deadline))?.map_err(|source| wire(to, source))?;
        Ok(Self { endpoint: to.clone(), connection })
    }

    /// The next message. A publisher may have nothing to say for hours.
    ///
    /// # Errors
    /// [`AskError`], when the connection has ended or a message is not as described.
    ///
    /// # Cancel safety
    /// None: after the future was dropped the subscription is of no use.
    pub async fn next(&mut self) -> Result<Numbered, AskError> {
        let frames = self.connection.receive().await.map_err(|source| wire(&self.endpoint, source))?;
        match frames.as_slice() {
            [_topic, number, payload] => numbered(number, payload),
            _ => None,
        }
        .ok_or_else(|| wire(&self.endpoint, WireError::NotNumbered))
    }
}

/// Messages that a publisher repeats.
pub struct Replay {
    endpoint: Endpoint,
    connection: Connection<TcpStream>,
    deadline: Duration,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Replay {
    /// Asks for all messages from number `from` on that the publisher still has. `bytes` bounds one message, `deadline` this call
    /// and each later one.
    ///
    /// # Errors
    /// [`AskError`], when nobody is there or speaks something else.
    pub async fn open(to: &Endpoint, from: u64, bytes: u64, deadline: Duration) -> Result<Self, AskError> {
        let mut connection = connect(to, SocketType::Req, bytes, deadline).await?;
        let question = [Bytes::new(), Bytes::copy_from_slice(&from.to_be_bytes())];
        let sent = timeout(deadline, connection.send(&question)).await;
        sent.map_err(|_| late(to, Step::Answer, deadline))?.map_err(|source| wire(to, source))?;
        Ok(Self { endpoint: to.clone(), connection, deadline })
    }

    /// The next message; `None` after the last one.
    ///
    /// # Errors
    /// [`AskError`], when it does not come in time or is not as described.
    ///
    /// # Cancel safety
    /// None: after the future was dropped the replay is of no use.
    pub async fn next(&mut self) -> Result<Option<Numbered>, AskError> {
        let received = timeout(self.deadline, self.connection.receive()).await;
        let frames = received.map_err(|_| late(&self.endpoint, Step::Answer, self.deadline))?;
        let frames = frames.map_err(|source| wire(&self.endpoint, source))?;
        match frames.as_slice() {
            // -1 ends it.
            [_delimiter, _topic, number, _] if **number == [0xff; 8] => Ok(None),
            [delimiter, _topic, number, payload] if delimiter.is_empty() => {
                let message = numbered(number, payload);
                message.map(Some).ok_or_else(|| wire(&self.endpoint, WireError::NotNumbered))
            }
            _ => Err(wire(&self.endpoint, WireError::NotNumbered)),
        }
    }
}

async fn connect(
    to: &Endpoint,
    ours: SocketType,
    bytes: u64,
    deadline: Duration,
) -> Result<Connection<TcpStream>, AskError> {
    let connecting = timeout(deadline, TcpStream::connect((to.host.as_str(), to.port))).await;
    let connected = connecting.map_err(|_| late(to, Step::Connect, deadline))?;
    let stream = connected.map_err(|source| AskError::Connect { endpoint: to.clone(), source })?;
    stream.set_nodelay(true).map_err(|error| wire(to, error.into()))?;
    let greeting =
        timeout(deadline, Connection::greet(stream, ours, MessageLimits { bytes, frames: MAX_FRAMES })).await;
    greeting.map_err(|_| late(to, Step::Greet, deadline))?.map_err(|source| wire(to, source))
}

fn numbered(number: &Bytes, payload: &Bytes) -> Option<Numbered> {
    let number = u64::from_be_bytes(number.as_ref().try_into().ok()?);
    Some(Numbered { number, payload: payload.clone() })
}

fn late(to: &Endpoint, step: Step, after: Duration) -> AskError {
    AskError::Deadline { endpoint: to.clone(), step, after }
}

fn wire(to: &Endpoint, source: WireError) -> AskError {
    AskError::Wire { endpoint: to.clone(), source }
}

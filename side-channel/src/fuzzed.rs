//! What a peer's bytes meet, without sockets: for the fuzz targets (`tests/fuzz`) alone.

use bytes::Bytes;
use tokio::io::{join, sink};

use crate::zmq::Limits;
use crate::zmtp::{Connection, MessageLimits, SocketType, WireError};

/// Messages of a connection that are read; a fuzz input need not have more.
const MOST: usize = 64;

/// What a server understands of a connection's bytes: whole messages, until one is not.
pub async fn as_server(bytes: &[u8]) -> (Vec<Vec<Bytes>>, Option<WireError>) {
    exchange(bytes, SocketType::Router, Limits::default().request_bytes).await
}

/// The same for whoever asks.
pub async fn as_asker(bytes: &[u8]) -> (Vec<Vec<Bytes>>, Option<WireError>) {
    exchange(bytes, SocketType::Req, Limits::default().answer_bytes).await
}

/// The same for a subscriber.
pub async fn as_subscriber(bytes: &[u8]) -> (Vec<Vec<Bytes>>, Option<WireError>) {
    exchange(bytes, SocketType::Sub, Limits::default().answer_bytes).await
}

async fn exchange(bytes: &[u8], ours: SocketType, limit: u64) -> (Vec<Vec<Bytes>>, Option<WireError>) {
    let limits = MessageLimits { bytes: limit, frames: crate::zmq::MAX_FRAMES };
    let mut messages = Vec::new();
    let mut connection = match Connection::greet(join(bytes, sink()), ours, limits).await {
        Ok(connection) => connection,
        Err(error) => return (messages, Some(error)),
    };
    while messages.len() < MOST {
        match connection.receive().await {
            Ok(message) => messages.push(message),
            Err(error) => return (messages, Some(error)),
        }
    }
    (messages, None)
}

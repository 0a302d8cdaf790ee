//! The side channel's messages: one question, two frames of answer (protocol doc §1.2, §1.3). What is asked and answered
//! depends on the release: see [`crate::versions`].

mod metadata;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use kv::ids::TpRank;
use rmpv::{Value, ValueRef};

use crate::msgpack;
use crate::versions::{Part, Version};

pub use metadata::{AgentMetadata, MAX_REGIONS, UnsupportedLayout};

const QUESTION: &[u8] = b"get_meta_msg";
/// The longest hash that we take; a SHA-256 in hex has 64 characters.
const MAX_HASH: usize = 256;

/// A question for one worker's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaRequest {
    /// Pipeline rank; 0 for everything that we support.
    pub pp: u16,
    /// Tensor-parallel shard. One that the engine does not have kills vLLM's listener.
    pub tp: TpRank,
}

/// The answer's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// See [`crate::hash`].
    pub compatibility_hash: String,
    /// An encoded [`AgentMetadata`]; read only after the hash has been compared.
    pub agent_metadata: Bytes,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The first frame.
    pub payload: Payload,
    /// The server's monotonic clock, seconds.
    pub timestamp: f64,
}

/// Why bytes are not what the side channel says.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// An answer of another number of frames.
    #[error("an answer of {found} frames, {expected} are expected")]
    Frames {
        /// Its frames.
        found: usize,
        /// What the release sends.
        expected: usize,
    },
    /// A document over the limit.
    #[error("{what} of {len} bytes, the limit is {limit}")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// Its bytes.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// Not msgpack, or nested too deeply.
    #[error("{what} is not valid msgpack")]
    Msgpack {
        /// Which document.
        what: &'static str,
        /// The decoder's reason.
        #[source]
        source: rmpv::decode::Error,
    },
    /// Bytes after the document.
    #[error("{what} is followed by {bytes} more bytes")]
    Trailing {
        /// Which document.
        what: &'static str,
        /// How many.
        bytes: usize,
    },
    /// Something else than a map.
    #[error("{what} is not a map")]
    NotAMap {
        /// Which document.
        what: &'static str,
    },
    /// A required field is not there.
    #[error("{what} has no {field}")]
    Missing {
        /// Which document.
        what: &'static str,
        /// Which field.
        field: &'static str,
    },
    /// A field of another type or out of range.
    #[error("{what}: {field} is not {expected}")]
    Field {
        /// Which document.
        what: &'static str,
        /// Which field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// Not a question of this protocol version.
    #[error("the request is not a question of this vLLM release")]
    NotAQuestion,
}

/// The question's bytes as a release wants them: in 0.30 to 0.32 `msgpack([bin "get_meta_msg", pp, tp])`.
pub fn request(version: &Version, pp: u16, tp: TpRank) -> Bytes {
    let part = |part: &Part| match part {
        Part::Word => Value::Binary(QUESTION.to_vec()),
        Part::PpRank => pp.into(),
        Part::TpRank => tp.0.into(),
    };
    msgpack::write(&Value::Array(version.question.iter().map(part).collect())).into()
}

/// Reads a question of a release. A rank that the release does not send is 0.
///
/// # Errors
/// [`HandshakeError`] for anything else; vLLM's own listener would die of most of it.
pub fn parse_request(version: &Version, bytes: &[u8]) -> Result<MetaRequest, HandshakeError> {
    let question = msgpack::read("request", bytes)?;
    let ValueRef::Array(parts) = &question else { return Err(HandshakeError::NotAQuestion) };
    if parts.len() != version.question.len() {
        return Err(HandshakeError::NotAQuestion);
    }
    let mut request = MetaRequest { pp: 0, tp: TpRank(0) };
    for (part, value) in version.question.iter().zip(parts) {
        let understood = match part {
            Part::Word => matches!(value, ValueRef::Binary(word) if *word == QUESTION).then_some(()),
            Part::PpRank => msgpack::integer(value).map(|pp| request.pp = pp),
            Part::TpRank => msgpack::integer(value).map(|tp| request.tp = TpRank(tp)),
        };
        understood.ok_or(HandshakeError::NotAQuestion)?;
    }
    Ok(request)
}

/// An answer's two frames. `timestamp`: the server's monotonic clock, seconds.
pub fn reply(payload: &Payload, timestamp: f64) -> Vec<Bytes> {
    let map = Value::Map(vec![
        ("compatibility_hash".into(), payload.compatibility_hash.as_str().into()),
        ("agent_metadata_bytes".into(), Value::Binary(payload.agent_metadata.to_vec())),
    ]);
    vec![msgpack::write(&map).into(), msgpack::write(&Value::F64(timestamp)).into()]
}

/// Reads the frames that a release answers, the metadata unopened.
///
/// # Errors
/// [`HandshakeError`].
pub fn parse_reply<F: AsRef<[u8]>>(version: &Version, frames: &[F]) -> Result<Reply, HandshakeError> {
    let (found, expected) = (frames.len(), version.reply_frames);
    let [payload, timestamp] = frames else { return Err(HandshakeError::Frames { found, expected }) };
    let what = "handshake payload";
    let map = msgpack::Map::read(what, payload.as_ref())?;
    let hash = |value: &ValueRef<'_>| msgpack::string(value).filter(|hash| hash.len() <= MAX_HASH);
    let payload = Payload {
        compatibility_hash: map.required("compatibility_hash", "a short string", hash)?,
        agent_metadata: map.required("agent_metadata_bytes", "binary", msgpack::binary)?,
    };
    let what = "timestamp";
    let clock = msgpack::read(what, timestamp.as_ref())?;
    let field = HandshakeError::Field { what, field: "value", expected: "a number" };
    Ok(Reply { payload, timestamp: msgpack::number(&clock).ok_or(field)? })
}

//! NIXL notifications from a reader to the engine that it read from (protocol doc §3.2): UTF-8, no terminator.

use bytes::Bytes;
use kv::ids::EngineRequestId;

/// The most bytes of a notification that we look at.
pub const MAX_BYTES: usize = 1024 * 1024;

const HEARTBEAT: &str = "HB:";
const PUSH: &str = "PUSH_REG:";

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notif {
    /// A reader has read all it wants; the blocks are free when `readers` of these have come (per TP shard).
    Done {
        /// The request as the notified engine knows it.
        request: EngineRequestId,
        /// How many readers there are; at least 1.
        readers: u32,
    },
    /// The readers still want these requests' blocks.
    Heartbeat {
        /// The requests as the notified engine knows them.
        requests: Vec<EngineRequestId>,
    },
}

/// Why bytes are no notification of the pull protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotifError {
    /// Longer than [`MAX_BYTES`].
    #[error("a notification of {0} bytes")]
    TooLarge(usize),
    /// Not text.
    #[error("a notification that is not UTF-8")]
    NotUtf8,
    /// A push-mode registration.
    #[error("a registration of push mode, which is not supported")]
    Push,
    /// Neither `id:n` nor `HB:`.
    #[error("a notification that is neither \"id:readers\" nor a heartbeat")]
    Malformed,
}

/// Reads one notification. The request id may itself contain colons: the last one counts, as in vLLM's `rsplit`.
///
/// # Errors
/// [`NotifError`]; such bytes are to be counted and otherwise ignored.
pub fn parse(bytes: &[u8]) -> Result<Notif, NotifError> {
    if bytes.len() > MAX_BYTES {
        return Err(NotifError::TooLarge(bytes.len()));
    }
    if bytes.starts_with(PUSH.as_bytes()) {
        return Err(NotifError::Push);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| NotifError::NotUtf8)?;
    if let Some(ids) = text.strip_prefix(HEARTBEAT) {
        let requests = ids.split(',').filter(|id| !id.is_empty()).map(EngineRequestId::new).collect();
        return Ok(Notif::Heartbeat { requests });
    }
    let (request, readers) = text.rsplit_once(':').ok_or(NotifError::Malformed)?;
    let digits = !readers.is_empty() && readers.bytes().all(|byte| byte.is_ascii_digit());
    let readers = readers.parse().ok().filter(|readers| digits && *readers > 0);
    match readers {
        Some(readers) if !request.is_empty() => Ok(Notif::Done { request: EngineRequestId::new(request), readers }),
        Some(_) | None => Err(NotifError::Malformed),
    }
}

/// The notification that a request's blocks have been read by one of `readers`.
pub fn done(request: &EngineRequestId, readers: u32) -> Bytes {
    format!("{request}:{readers}").into()
}

/// The heartbeat for some requests of one engine.
pub fn heartbeat<'a>(requests: impl IntoIterator<Item = &'a EngineRequestId>) -> Bytes {
    let ids: Vec<&str> = requests.into_iter().map(EngineRequestId::as_str).collect();
    format!("{HEARTBEAT}{}", ids.join(",")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_are_vllms() {
        let id = EngineRequestId::new("cmpl-x-0-1a2b3c4d");
        assert_eq!(&done(&id, 1)[..], b"cmpl-x-0-1a2b3c4d:1");
        let other = EngineRequestId::new("chatcmpl-y-00000000");
        assert_eq!(&heartbeat([&id, &other])[..], b"HB:cmpl-x-0-1a2b3c4d,chatcmpl-y-00000000");
        assert_eq!(parse(b"a:b:2"), Ok(Notif::Done { request: EngineRequestId::new("a:b"), readers: 2 }));
        assert_eq!(parse(b"HB:"), Ok(Notif::Heartbeat { requests: vec![] }));
    }

    #[test]
    fn nonsense_is_named() {
        for bytes in [&b""[..], b"a", b":1", b"a:", b"a:0", b"a:-1", b"a:+1", b"a: 1", b"a:1x", b"a:99999999999"] {
            assert_eq!(parse(bytes), Err(NotifError::Malformed), "{bytes:?}");
        }
        assert_eq!(parse(b"\xff:1"), Err(NotifError::NotUtf8));
        assert_eq!(parse(b"PUSH_REG:\x81\xff"), Err(NotifError::Push));
        assert_eq!(parse(&vec![b'a'; MAX_BYTES + 1]), Err(NotifError::TooLarge(MAX_BYTES + 1)));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&bytes));
        }

        #[test]
        fn what_is_sent_is_what_is_read(ids in prop::collection::vec("[a-z0-9:-]{1,20}", 1..5), n in 1_u32..9) {
            let ids: Vec<_> = ids.iter().map(|id| EngineRequestId::new(format!("c{id}"))).collect();
            prop_assert_eq!(parse(&done(&ids[0], n)).unwrap(), Notif::Done { request: ids[0].clone(), readers: n });
            prop_assert_eq!(parse(&heartbeat(&ids)).unwrap(), Notif::Heartbeat { requests: ids });
        }
    }
}

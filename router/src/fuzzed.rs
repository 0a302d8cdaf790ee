//! What engines' and sidecars' streams and gateways' headers meet in here: for the fuzz targets (`tests/fuzz`) alone.

use bytes::Bytes;
use http::HeaderMap;

use crate::pod_local;
use crate::relay::{Scrub, WholeEvents};
use crate::sse::Splitter;

/// The events of a sidecar's stream as `name` and `data`, however it is cut; no more than come before one that is too long.
pub fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<(String, String)> {
    let (mut splitter, mut events) = (Splitter::default(), Vec::new());
    for piece in pieces {
        if splitter.push(piece).is_err() {
            break;
        }
        events.extend(std::iter::from_fn(|| splitter.next_event()).map(|event| (event.name, event.data)));
    }
    events
}

/// What a client sees of a decode's answer that comes in these pieces.
pub fn scrubbed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut scrub = Scrub::new();
    pieces.into_iter().flat_map(|piece| scrub.pass(Bytes::copy_from_slice(piece))).collect()
}

/// What goes on of a decode's stream, and what is left at its end.
pub fn whole_events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Bytes>, Option<Bytes>) {
    let mut events = WholeEvents::default();
    let passed = pieces.into_iter().filter_map(|piece| events.pass(Bytes::copy_from_slice(piece))).collect();
    (passed, events.rest())
}

/// Whom a gateway names for prefill with this header; `None` when it is no header, or names what is no address.
pub fn prefillers(header: &str) -> Option<Vec<String>> {
    let mut headers = HeaderMap::new();
    headers.insert("x-prefiller-host-port", header.parse().ok()?);
    let named = pod_local::prefillers(&mut headers)?;
    assert!(headers.is_empty(), "nothing of it goes on to an engine");
    Some(named.iter().map(ToString::to_string).collect())
}

//! Streams that come in pieces, and pages of metrics.

use router::fuzzed;
use serde_json::Value;
use vllm_wire::metrics::parse;
use vllm_wire::openai::{error_in_event, event_data};

use crate::memory::Bound;

/// Cut into pieces of a few bytes, the same bytes are held several times.
const PIECES: Bound = Bound { base: 64 << 10, each: 300 };
const LINES: Bound = Bound { base: 64 << 10, each: 64 };

/// Server-sent events, cut into pieces as the first byte says: what is understood and what goes on must not depend on the cuts.
pub fn server_sent_events(data: &[u8]) {
    let Some((first, stream)) = data.split_first() else { return };
    let cut = || stream.chunks(usize::from(*first).max(1));
    let whole = || std::iter::once(stream);
    let events = PIECES.holds_for(stream.len(), || fuzzed::events(cut()));
    assert_eq!(events, fuzzed::events(whole()));
    let scrubbed = PIECES.holds_for(stream.len(), || fuzzed::scrubbed(cut()));
    assert_eq!(scrubbed, fuzzed::scrubbed(whole()));
    assert_eq!(scrubbed.len(), stream.len());
    no_params(stream, &scrubbed);
    let (passed, rest) = PIECES.holds_for(stream.len(), || fuzzed::whole_events(cut()));
    let all: Vec<u8> = passed.iter().chain(&rest).flat_map(|bytes| bytes.iter().copied()).collect();
    assert_eq!(all, stream, "every byte goes on");
    for passed in passed {
        let ended = [&b"\n\n"[..], b"\r\n\r\n", b"\r\r"].into_iter().any(|end| passed.ends_with(end));
        assert!(ended || passed.len() > 256 * 1024, "a torn event goes on");
    }
    drop((event_data(stream), error_in_event(stream)));
}

/// No transfer parameters are left in what was JSON, or a stream of it; a key that is written with escapes is none of an engine's.
fn no_params(stream: &[u8], scrubbed: &[u8]) {
    fn check(value: &Value) {
        match value {
            Value::Object(members) => members.iter().for_each(|(key, value)| {
                let told = match value {
                    Value::Object(members) => !members.is_empty(),
                    Value::Array(values) => !values.is_empty(),
                    Value::String(text) => !text.trim().is_empty(),
                    Value::Null | Value::Bool(_) | Value::Number(_) => false,
                };
                assert!(key != "kv_transfer_params" || !told, "a client sees {value}");
                check(value);
            }),
            Value::Array(values) => values.iter().for_each(check),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    fn events(text: &str) -> Vec<Option<Value>> {
        let events = text.split("\n\n").filter(|event| !event.is_empty());
        let one_line = |event: &str| -> Option<Value> {
            event.strip_prefix("data: ").filter(|json| !json.contains(['\n', '\r']))?.parse().ok()
        };
        events.map(one_line).collect()
    }
    let (Ok(stream), Ok(scrubbed)) = (std::str::from_utf8(stream), std::str::from_utf8(scrubbed)) else { return };
    if stream.contains('\\') {
        return;
    }
    if stream.parse::<Value>().is_ok() {
        check(&scrubbed.parse().expect("what was JSON is still JSON"));
    }
    if events(stream).iter().all(Option::is_some) {
        events(scrubbed).into_iter().for_each(|event| check(&event.expect("what was JSON is still JSON")));
    }
}

/// A page of metrics.
pub fn metrics(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = LINES.holds_for(text.len(), || parse(text));
    for load in read.ranks.values() {
        assert!((0.0..=1.0).contains(&load.kv_usage), "{load:?}");
    }
    assert!(read.ranks.len() <= text.lines().count());
    assert_eq!(parse(text), read);
}

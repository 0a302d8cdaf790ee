//! The answers, whole with their heads, and the little that is read in requests.

use std::sync::atomic::{AtomicU64, Ordering};

use bench_router::message::RequestHead;
use serde_json::{Value, json};

/// What a listener stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Prefill,
    Decode,
    Sidecar,
}

/// P's engine, and the engine that a sidecar's receipt names instead.
const SOURCE: &str = "stub-prefill_dp0";
const VIRTUAL: &str = "stub-virtual_dp0";

/// All answers.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) prefill: Vec<u8>,
    pub(crate) decode: Vec<u8>,
    pub(crate) stream_head: Vec<u8>,
    pub(crate) stream_event: Vec<u8>,
    pub(crate) stream_end: Vec<u8>,
    pub(crate) rank_events: Vec<u8>,
    pub(crate) comment: Vec<u8>,
    empty: Vec<u8>,
    models: Vec<u8>,
    version: Vec<u8>,
    /// By rank.
    landed: Vec<Vec<u8>>,
    claimed: Vec<u8>,
    finished: Vec<u8>,
    no_content: Vec<u8>,
    counts: Counts,
}

/// What has been asked of each role: the proof that a router went the whole way.
#[derive(Debug, Default)]
struct Counts {
    prefills: AtomicU64,
    transfers: AtomicU64,
    decodes: AtomicU64,
}

impl Answers {
    /// For pods of so many ranks.
    pub(crate) fn new(ranks: u16) -> Self {
        let usage =
            json!({"prompt_tokens": 512, "completion_tokens": 1, "total_tokens": 513, "prompt_tokens_details": null});
        let answer = |text: &str, params: Value| {
            json!({
                "id": "cmpl-stub", "object": "text_completion", "created": 1_700_000_000, "model": "stub",
                "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": "length", "stop_reason": null}],
                "service_tier": null, "system_fingerprint": null, "usage": usage, "kv_transfer_params": params,
            })
        };
        let event = json!({
            "id": "cmpl-stub", "object": "text_completion", "created": 1_700_000_000, "model": "stub",
            "choices": [{"index": 0, "text": " word", "logprobs": null, "finish_reason": null, "stop_reason": null}],
        });
        let rank = |number: u16| {
            json!({
                "dp_rank": number, "local_rank": number, "state": "ready", "reasons": [], "draining": false,
                "load": {"running": 0, "waiting": 0, "kv_usage": 0.0},
            })
        };
        let landed = |rank: u16| {
            json!({
                "transfer_id": "stub-transfer", "state": "landed",
                "kv_transfer_params": params(VIRTUAL, "stub-landed"),
                "receipt": {
                    "dp_rank": rank, "engine_id": "stub-decode", "virtual_engine_id": VIRTUAL, "source_engine_id": SOURCE,
                    "request_id": "stub-landed", "blocks": 32, "bytes": 67_108_864, "stages_us": {},
                    "source_lease_left_ms": 29_000, "collect_by_ms": 30_000,
                },
            })
        };
        let mut rank_events =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for number in 0..ranks {
            rank_events.extend(chunk(&format!("event: rank\nid: {}\ndata: {}\n\n", number + 1, rank(number))));
        }
        let mut stream_end = chunk("data: [DONE]\n\n");
        stream_end.extend_from_slice(b"0\r\n\r\n");
        Self {
            prefill: ok(&answer("x", params(SOURCE, "cmpl-stub-prefill-0-1a2b3c4d")).to_string()),
            decode: ok(&answer(" word word word", Value::Null).to_string()),
            stream_head: b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
            stream_event: chunk(&format!("data: {event}\n\n")),
            stream_end,
            rank_events,
            comment: chunk(": still here\n\n"),
            empty: ok(""),
            models: ok(&json!({"object": "list", "data": [{"id": "stub", "object": "model", "owned_by": "vllm"}]}).to_string()),
            version: ok(&json!({"version": "0.32.0"}).to_string()),
            landed: (0..ranks).map(|rank| ok(&landed(rank).to_string())).collect(),
            claimed: ok(&json!({"collect_by_ms": 30_000}).to_string()),
            finished: ok(&json!({"transfer_id": "stub-transfer", "state": "done"}).to_string()),
            no_content: b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            counts: Counts::default(),
        }
    }

    /// One more request that is work.
    pub(crate) fn count(&self, role: Role, head: &RequestHead) {
        let counter = match role {
            Role::Prefill if !head.is_get => &self.counts.prefills,
            Role::Decode if !head.is_get => &self.counts.decodes,
            Role::Sidecar if !head.is_get && !head.is_delete && head.path == "/v1/transfers" => &self.counts.transfers,
            Role::Prefill | Role::Decode | Role::Sidecar => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// `GET /counts`.
    pub(crate) fn counts(&self) -> Vec<u8> {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { prefills, transfers, decodes } = &self.counts;
        ok(&json!({"prefills": of(prefills), "transfers": of(transfers), "decodes": of(decodes)}).to_string())
    }

    /// What engines tell of themselves.
    pub(crate) fn about_engine(&self, path: &str) -> &[u8] {
        match path {
            "/v1/models" => &self.models,
            "/version" | "/get_server_info" | "/server_info" => &self.version,
            _ => &self.empty,
        }
    }

    /// A sidecar's answers, all but the event stream.
    pub(crate) fn of_sidecar(&self, head: &RequestHead, body: &[u8]) -> &[u8] {
        let handles = head.path.starts_with("/v1/handles");
        match (head.is_get, head.is_delete) {
            (true, _) => &self.version,
            (_, true) if handles => &self.no_content,
            (_, true) => &self.finished,
            (false, false) if head.path == "/v1/finished-transfers" => &self.finished,
            (false, false) if handles || head.path.ends_with("/claim") => &self.claimed,
            (false, false) => {
                let rank = number(body, b"\"dp_rank\"").and_then(|rank| usize::try_from(rank).ok());
                self.landed.get(rank.unwrap_or(0)).unwrap_or(&self.empty)
            }
        }
    }
}

/// P's `kv_transfer_params` (vLLM's NIXL connector), or those beside a receipt.
fn params(engine: &str, request: &str) -> Value {
    json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [(1..=32).collect::<Vec<u32>>()],
        "remote_engine_id": engine, "remote_request_id": request, "remote_host": "127.0.0.1", "remote_port": 5600,
        "tp_size": 1, "dcp_size": 1, "pp_size": 1, "remote_num_tokens": 512,
    })
}

fn ok(body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: {length}\r\ncontent-type: application/json\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

fn chunk(data: &str) -> Vec<u8> {
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

/// What follows a key and its colon, wherever it stands: the bodies here have each key once.
fn after<'a>(body: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let at = memchr::memmem::find(body, key)?;
    let value = body.get(at + key.len()..)?.trim_ascii_start().strip_prefix(b":")?;
    Some(value.trim_ascii_start())
}

pub(super) fn is_true(body: &[u8], key: &[u8]) -> bool {
    after(body, key).is_some_and(|value| value.starts_with(b"true"))
}

pub(super) fn number(body: &[u8], key: &[u8]) -> Option<u64> {
    let value = after(body, key)?;
    let end = value.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(value.len());
    std::str::from_utf8(value.get(..end)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_however_they_are_spaced() {
        let body = br#"{"stream": true,"max_tokens":16 , "seed" : 0}"#;
        assert!(is_true(body, b"\"stream\""));
        assert_eq!(number(body, b"\"max_tokens\""), Some(16));
        assert_eq!(number(body, b"\"seed\""), Some(0));
        assert_eq!(number(body, b"\"n\""), None);
    }
}

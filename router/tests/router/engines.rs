//! Fake vLLM engines: a prefill one and a decode one, that do as their script says, else well.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::journal::{Event, Journal, Tripwire};

/// The answer of a decode that is not streamed; odd on purpose.
pub(crate) const ANSWER: &str =
    r#"{"id": "d",  "choices":[{"text":"hi"}],"t":0.10,"big":12345678901234567890123,"x":null,"é":"é"}"#;
/// The events of a streamed one.
pub(crate) const EVENTS: [&str; 3] =
    ["data: {\"text\":\"a\",\"n\":null}\n\n", "data: {\"text\":\"b\"}\n\n", "data: [DONE]\n\n"];

/// The answer on a path that is no completion's.
pub(crate) const OTHER: &str = r#"{"here":  0.10}"#;
/// Longest body that the fakes take.
const LARGEST: usize = 1 << 28;

/// What a prefill engine does next.
#[derive(Debug)]
pub(crate) enum Prefills {
    Status(u16, &'static str),
    NoKv,
    /// KV that kvgate cannot move.
    Unsupported,
    /// The KV of another request of the same router.
    Foreign,
    /// The connection ends in the middle of the answer.
    Breaks,
    Hangs,
}

/// What a decode engine does next.
#[derive(Debug)]
pub(crate) enum Decodes {
    Status(u16, &'static str),
    ErrorEvent,
    /// Streams this and ends.
    Events(&'static [&'static str]),
    /// An answer that is not streamed.
    Whole(&'static str),
    /// Streams this, then the connection ends.
    Breaks(&'static [&'static str]),
    /// The connection ends in the middle of an answer that is not streamed.
    BreaksWhole,
    /// Streams what the test sends, until the sender is dropped.
    Fed(mpsc::Receiver<Bytes>),
    /// The same, but then the connection ends.
    FedThenBreaks(mpsc::Receiver<Bytes>),
    Hangs,
}

#[derive(Debug)]
pub(crate) struct Engine<T> {
    pub(crate) journal: Journal,
    pub(crate) script: Mutex<VecDeque<T>>,
    served: AtomicUsize,
}

impl<T> Engine<T> {
    pub(crate) fn new(journal: &Journal) -> Arc<Self> {
        Arc::new(Self { journal: journal.clone(), script: Mutex::default(), served: AtomicUsize::new(0) })
    }

    /// Requests that came here.
    pub(crate) fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    pub(crate) fn next(&self, does: T) {
        self.script.lock().push_back(does);
    }
}

pub(crate) fn prefill_engine(engine: Arc<Engine<Prefills>>) -> axum::Router {
    axum::Router::new()
        .route("/v1/completions", post(prefill))
        .route("/v1/chat/completions", post(prefill))
        .route("/v1/responses", post(prefill))
        .route("/v1/messages", post(prefill))
        .route("/health", get(|| async { "" }))
        .with_state(engine)
}

pub(crate) fn decode_engine(engine: Arc<Engine<Decodes>>) -> axum::Router {
    axum::Router::new()
        .route("/v1/completions", post(decode))
        .route("/v1/chat/completions", post(decode))
        .route("/v1/responses", post(decode))
        .route("/v1/messages", post(decode))
        .route("/v1/models", get(models))
        .route("/health", get(|| async { "" }))
        .fallback(other)
        .with_state(engine)
}

/// `m` of all, and one of its own.
async fn models(request: Request) -> Response {
    let host = request.headers()["host"].to_str().unwrap().to_owned();
    axum::Json(json!({"object": "list", "data": [{"id": "m"}, {"id": host}]})).into_response()
}

/// Any other path: says that it was here, and names itself by its address where it may.
async fn other(State(engine): State<Arc<Engine<Decodes>>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, LARGEST).await.unwrap().to_vec();
    let (path, host) = (head.uri.to_string(), head.headers["host"].to_str().unwrap().to_owned());
    engine.journal.write(Event::Other { method: head.method, path: path.clone(), headers: head.headers, body });
    if path == "/v9/moved" {
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("http://{host}/v9/here?a=1"))])
            .into_response();
    }
    if path == "/v9/hangs" {
        return std::future::pending().await;
    }
    let status = if path == "/v9/broken" { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    (status, [("x-engine", "kept")], OTHER).into_response()
}

fn rank(headers: &HeaderMap) -> Option<u16> {
    headers.get("x-data-parallel-rank")?.to_str().ok()?.parse().ok()
}

async fn read(request: Request) -> (HeaderMap, Vec<u8>, Value) {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, LARGEST).await.unwrap().to_vec();
    // Some bodies say what no such value can hold, and the largest would take long.
    let json = if body.len() < 1 << 24 { serde_json::from_slice(&body).unwrap_or_default() } else { Value::Null };
    (head.headers, body, json)
}

async fn prefill(State(engine): State<Arc<Engine<Prefills>>>, request: Request) -> Response {
    let (headers, body, json) = read(request).await;
    let (rank, id) = (rank(&headers).unwrap_or(0), headers["x-request-id"].to_str().unwrap().to_owned());
    engine.served.fetch_add(1, Ordering::SeqCst);
    engine.journal.write(Event::Prefill { rank: Some(rank), headers, body });
    let does = engine.script.lock().pop_front();
    match does {
        None => {}
        Some(Prefills::Status(status, body)) => return plain(status, body),
        Some(Prefills::NoKv) => return axum::Json(json!({"kv_transfer_params": null})).into_response(),
        Some(Prefills::Breaks) => return broken("application/json", &["{\"id\""]),
        Some(Prefills::Unsupported) => {
            let mut answer = kv(rank, &id);
            answer["kv_transfer_params"]["pp_size"] = json!(2);
            return axum::Json(answer).into_response();
        }
        Some(Prefills::Foreign) => {
            let mut answer = kv(rank, "test-77-1");
            answer["kv_transfer_params"]["remote_block_ids"] = json!([[8, 9]]);
            return axum::Json(answer).into_response();
        }
        Some(Prefills::Hangs) => {
            let _tripwire = Tripwire::new(&engine.journal, Event::PrefillCancelled);
            return std::future::pending().await;
        }
    }
    let mut answer = kv(rank, &id);
    if json.get("return_token_ids") == Some(&json!(true)) {
        answer["prompt_token_ids"] = json!([7, 8, 9]);
    }
    axum::Json(answer).into_response()
}

fn kv(rank: u16, id: &str) -> Value {
    json!({
        "id": "p", "choices": [{"text": "x"}],
        "kv_transfer_params": {
            "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[1, 2]],
            "remote_engine_id": format!("p-engine_dp{rank}"), "remote_request_id": format!("cmpl-{id}-0-12345678"),
            "remote_host": "127.0.0.1", "remote_port": 5600, "tp_size": 1, "dcp_size": 1, "pp_size": 1,
            "remote_num_tokens": 20, "remote_prefill_cached_tokens": if id.ends_with("-1") { 0 } else { 16 }, "transfer_mode": "pull", "something_new": 0.1,
        },
    })
}

async fn decode(State(engine): State<Arc<Engine<Decodes>>>, request: Request) -> Response {
    let (headers, body, json) = read(request).await;
    let remote = json.get("kv_transfer_params").and_then(|params| params.get("remote_request_id"));
    let remote = remote.and_then(Value::as_str).map(str::to_owned);
    engine.served.fetch_add(1, Ordering::SeqCst);
    engine.journal.write(Event::Decode { rank: rank(&headers), headers, body, request: remote });
    let does = engine.script.lock().pop_front();
    let tripwire = Tripwire::new(&engine.journal, Event::DecodeCancelled);
    match does {
        Some(Decodes::Status(status, body)) => {
            let mut tripwire = tripwire;
            tripwire.defuse();
            plain(status, body)
        }
        Some(Decodes::ErrorEvent) => {
            let error = "data: {\"error\":{\"message\":\"Internal server error\",\"code\":500}}\n\n";
            events(tripwire, vec![": ping\n\n".into(), error.into(), "data: [DONE]\n\n".into()])
        }
        Some(Decodes::Events(frames)) => events(tripwire, frames.iter().copied().map(Bytes::from).collect()),
        Some(Decodes::Whole(body)) => {
            let mut tripwire = tripwire;
            tripwire.defuse();
            plain(200, body)
        }
        Some(Decodes::Breaks(frames)) => {
            let mut tripwire = tripwire;
            tripwire.defuse();
            broken("text/event-stream", frames)
        }
        Some(Decodes::BreaksWhole) => {
            let mut tripwire = tripwire;
            tripwire.defuse();
            broken("application/json", &["{\"id\": "])
        }
        Some(Decodes::Fed(receiver)) => fed(receiver, tripwire, false),
        Some(Decodes::FedThenBreaks(receiver)) => fed(receiver, tripwire, true),
        Some(Decodes::Hangs) => std::future::pending().await,
        None if json.get("stream") == Some(&json!(true)) => events(tripwire, EVENTS.map(Bytes::from).to_vec()),
        None => {
            let mut tripwire = tripwire;
            tripwire.defuse();
            ([(header::CONTENT_TYPE, "application/json"), ("x-engine".parse().unwrap(), "kept")], ANSWER)
                .into_response()
        }
    }
}

fn fed(receiver: mpsc::Receiver<Bytes>, tripwire: Tripwire, breaks: bool) -> Response {
    let frames = stream::unfold((receiver, tripwire, breaks), async |(mut receiver, mut tripwire, breaks)| {
        if let Some(bytes) = receiver.recv().await {
            return Some((Ok(bytes), (receiver, tripwire, breaks)));
        }
        tripwire.defuse();
        breaks.then(|| (Err(std::io::Error::other("broken")), (receiver, tripwire, false)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], Body::from_stream(frames)).into_response()
}

fn events(tripwire: Tripwire, frames: Vec<Bytes>) -> Response {
    let frames = stream::unfold((frames.into_iter(), tripwire), async |(mut frames, mut tripwire)| {
        let Some(frame) = frames.next() else {
            tripwire.defuse();
            return None;
        };
        Some((Ok::<_, std::io::Error>(frame), (frames, tripwire)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], Body::from_stream(frames)).into_response()
}

fn plain(status: u16, body: &'static str) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::RETRY_AFTER, "7")];
    let headers = headers.into_iter().filter(|(name, _)| name != header::RETRY_AFTER || matches!(status, 429 | 503));
    (StatusCode::from_u16(status).unwrap(), HeaderMap::from_iter(headers.map(|(n, v)| (n, v.parse().unwrap()))), body)
        .into_response()
}

/// An answer whose connection ends before it does.
fn broken(media_type: &'static str, frames: &'static [&'static str]) -> Response {
    let frames = frames.iter().map(|frame| Ok(Bytes::from(*frame)));
    // What has been sent before must not be lost with the connection.
    let end = stream::once(async {
        tokio::task::yield_now().await;
        Err(std::io::Error::other("broken"))
    });
    let body = Body::from_stream(stream::iter(frames).chain(end));
    ([(header::CONTENT_TYPE, media_type)], body).into_response()
}

//! A fake sidecar: rank events, transfers, claims, handles.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::sse::{Event as SseEvent, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures_util::stream::{Stream, unfold};
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::journal::{Event, Journal};

/// What a transfer does next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transfers {
    Problem(u16, &'static str, &'static str),
    /// In flight until it is cancelled.
    Hangs,
    /// In flight, but the answer breaks off.
    Breaks,
    /// A receipt for another rank than asked.
    WrongReceipt,
    /// A receipt after so long, of which the sidecar has worked so long.
    #[allow(dead_code, reason = "for tests/failover")]
    After {
        all: Duration,
        worked: Duration,
    },
}

#[derive(Debug)]
struct Known {
    id: String,
    cancelled: CancellationToken,
    landed: bool,
}

#[derive(Debug)]
pub(crate) struct Sidecar {
    journal: Journal,
    pub(crate) script: Mutex<VecDeque<Transfers>>,
    pub(crate) ranks: watch::Sender<Vec<Value>>,
    transfers: Mutex<BTreeMap<String, Known>>,
    token: Option<&'static str>,
    collect_by_ms: u64,
    /// What has freed transfers before the router's word; `forgotten` makes them unknown.
    pub(crate) freed: Mutex<BTreeMap<String, &'static str>>,
    kicked: watch::Sender<()>,
    mute: AtomicBool,
    /// Of all requests but for the event streams.
    pub(crate) headers: Mutex<Vec<HeaderMap>>,
}

impl Sidecar {
    /// All ranks ready.
    pub(crate) fn new(journal: &Journal, ranks: u16, token: Option<&'static str>, collect_by_ms: u64) -> Arc<Self> {
        let ranks = (0..ranks).map(|rank| rank_json(rank, "ready")).collect();
        Arc::new(Self {
            journal: journal.clone(),
            script: Mutex::default(),
            ranks: watch::channel(ranks).0,
            transfers: Mutex::default(),
            token,
            collect_by_ms,
            freed: Mutex::default(),
            kicked: watch::channel(()).0,
            mute: AtomicBool::new(false),
            headers: Mutex::default(),
        })
    }

    pub(crate) fn next(&self, does: Transfers) {
        self.script.lock().push_back(does);
    }

    pub(crate) fn set(&self, rank: u16, state: &str) {
        self.ranks.send_modify(|ranks| ranks[usize::from(rank)] = rank_json(rank, state));
    }

    /// Streams end, and nothing is answered any more.
    pub(crate) fn die(&self) {
        self.fall_silent();
        self.kick();
    }

    /// Streams stay open, but nothing is said or answered any more.
    pub(crate) fn fall_silent(&self) {
        self.mute.store(true, Ordering::SeqCst);
    }

    /// Ends every event stream.
    pub(crate) fn kick(&self) {
        self.kicked.send_replace(());
    }

    pub(crate) fn routes(self: Arc<Self>) -> axum::Router {
        let guarded = Arc::clone(&self);
        axum::Router::new()
            .route("/v1/ranks", get(ranks))
            .route("/v1/ranks/events", get(events))
            .route("/v1/transfers", post(transfer).get(of_attempt))
            .route("/v1/transfers/{id}", delete(finish).get(shown))
            .route("/v1/transfers/{id}/claim", post(claim))
            .route("/v1/finished-transfers", post(finish_all))
            .route("/v1/handles", post(report))
            .route("/v1/handles/{id}", delete(release))
            .layer(axum::middleware::from_fn(move |request: axum::extract::Request, next: axum::middleware::Next| {
                // What is said of many requests at once stands in none of their traces.
                let path = request.uri().path();
                if !path.ends_with("/events") && path != "/v1/finished-transfers" {
                    guarded.headers.lock().push(request.headers().clone());
                }
                let wanted = guarded.token.map(|token| format!("Bearer {token}"));
                let mute = guarded.mute.load(Ordering::SeqCst);
                async move {
                    if mute {
                        return std::future::pending().await;
                    }
                    let got = request.headers().get("authorization").and_then(|value| value.to_str().ok());
                    if wanted.is_some() && got != wanted.as_deref() {
                        return problem(401, "unauthorized", "never");
                    }
                    next.run(request).await
                }
            }))
            .with_state(self)
    }
}

fn rank_json(rank: u16, state: &str) -> Value {
    json!({
        "dp_rank": rank, "local_rank": rank, "state": state, "reasons": if state == "ready" { vec![] } else { vec!["so"] },
        "load": {"running": 0, "waiting": 0, "kv_usage": 0.5}, "draining": false, "unknown_field": {"a": 1},
    })
}

fn problem(status: u16, code: &str, retry: &str) -> Response {
    let body = json!({"type": "about:blank", "title": "t", "status": status, "code": code, "retry": retry,
        "detail": "ask 10.9.8.7:5600 for its metadata"});
    let headers = [("content-type", "application/problem+json")];
    (StatusCode::from_u16(status).unwrap(), headers, body.to_string()).into_response()
}

async fn events(State(sidecar): State<Arc<Sidecar>>) -> Sse<impl Stream<Item = Result<SseEvent, Infallible>>> {
    let mut source = sidecar.ranks.subscribe();
    source.mark_changed();
    let kicked = sidecar.kicked.subscribe();
    let stream =
        unfold((source, VecDeque::new(), sidecar, kicked), async |(mut source, mut pending, sidecar, mut kicked)| {
            while pending.is_empty() {
                tokio::select! {
                    changed = source.changed() => changed.ok()?,
                    _ = kicked.changed() => return None,
                    () = tokio::time::sleep(Duration::from_millis(100)), if !sidecar.mute.load(Ordering::SeqCst) => {
                        return Some((Ok(SseEvent::default().comment("")), (source, pending, sidecar, kicked)));
                    }
                }
                pending.extend(source.borrow_and_update().iter().cloned());
            }
            let rank: Value = pending.pop_front()?;
            let event = SseEvent::default().event("rank").id("1").json_data(rank).unwrap();
            Some((Ok(event), (source, pending, sidecar, kicked)))
        });
    Sse::new(Box::pin(stream))
}

async fn ranks(State(sidecar): State<Arc<Sidecar>>) -> Json<Value> {
    Json(json!({"ranks": *sidecar.ranks.borrow()}))
}

async fn transfer(State(sidecar): State<Arc<Sidecar>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let attempt = body["attempt_id"].as_str().unwrap().to_owned();
    if headers.contains_key("prefer") {
        let known = sidecar.transfers.lock().get(&attempt).map(|known| known.id.clone());
        let id = known.unwrap_or_else(|| "never-seen".to_owned());
        return (StatusCode::ACCEPTED, Json(json!({"transfer_id": id}))).into_response();
    }
    sidecar.journal.write(Event::Asked { body: body.clone() });
    let does = sidecar.script.lock().pop_front();
    let id = format!("t-{attempt}");
    let cancelled = CancellationToken::new();
    let landed = matches!(does, None | Some(Transfers::WrongReceipt | Transfers::After { .. }));
    let known = Known { id: id.clone(), cancelled: cancelled.clone(), landed };
    assert!(sidecar.transfers.lock().insert(attempt, known).is_none(), "an attempt id was used twice");
    match does {
        Some(Transfers::Problem(status, code, retry)) => return problem(status, code, retry),
        Some(Transfers::Hangs) => {
            cancelled.cancelled().await;
            return problem(409, "cancelled", "never");
        }
        Some(Transfers::Breaks) => {
            let broken = futures_util::stream::iter([Err::<bytes::Bytes, _>(std::io::Error::other("broken"))]);
            return axum::body::Body::from_stream(broken).into_response();
        }
        Some(Transfers::After { all, .. }) => tokio::time::sleep(all).await,
        Some(Transfers::WrongReceipt) | None => {}
    }
    let stages = match does {
        Some(Transfers::After { worked, .. }) => json!({"queued": 0, "wire": worked.as_micros()}),
        Some(Transfers::Problem(..) | Transfers::Hangs | Transfers::Breaks | Transfers::WrongReceipt) | None => {
            json!({})
        }
    };
    let asked = u16::try_from(body["dp_rank"].as_u64().unwrap()).unwrap();
    let rank = if matches!(does, Some(Transfers::WrongReceipt)) { asked + 1 } else { asked };
    let source = body["kv_transfer_params"]["remote_engine_id"].clone();
    let (engine, request) = (format!("virtual_dp{rank}"), format!("v-{id}"));
    let mut params = body["kv_transfer_params"].clone();
    params["remote_engine_id"] = json!(engine);
    params["remote_request_id"] = json!(request);
    sidecar.journal.write(Event::Receipt { rank, request: request.clone() });
    Json(json!({
        "transfer_id": id, "kv_transfer_params": params,
        "receipt": {
            "dp_rank": rank, "engine_id": "d", "virtual_engine_id": engine, "source_engine_id": source, "request_id": request,
            "blocks": 2, "bytes": 64, "stages_us": stages, "source_lease_left_ms": 1, "collect_by_ms": sidecar.collect_by_ms,
        },
    }))
    .into_response()
}

fn transfer_json(known: &Known, attempt: &str) -> Value {
    let failure = (!known.landed)
        .then(|| json!({"code": "lease_expired", "detail": "10.9.8.7 was late", "retry": "new_prefill"}));
    json!({
        "transfer_id": known.id, "attempt_id": attempt, "state": if known.landed { "done" } else { "failed" },
        "blocks": 2, "bytes": 64, "collected_by": 0, "failure": failure, "freed": known.landed.then_some("collected"),
        "stages_us": {"queued": 1, "handshake": 2, "post": 3, "wire": 40, "verify": 5, "landed_idle": 60, "collect": 7},
    })
}

async fn shown(State(sidecar): State<Arc<Sidecar>>, Path(id): Path<String>) -> Response {
    let transfers = sidecar.transfers.lock();
    match (sidecar.freed.lock().get(&id), transfers.iter().find(|(_, known)| known.id == id)) {
        (Some(&"forgotten"), _) | (_, None) => problem(404, "not_found", "never"),
        (Some(how), _) => Json(json!({"transfer_id": id, "state": "done", "freed": how})).into_response(),
        (None, Some((attempt, known))) => Json(transfer_json(known, attempt)).into_response(),
    }
}

/// Answers with all that it has, as a sidecar that does not know the question.
async fn of_attempt(State(sidecar): State<Arc<Sidecar>>) -> Json<Value> {
    let transfers = sidecar.transfers.lock();
    let all: Vec<Value> = transfers.iter().map(|(attempt, known)| transfer_json(known, attempt)).collect();
    Json(json!({ "transfers": all }))
}

async fn finish(State(sidecar): State<Arc<Sidecar>>, Path(id): Path<String>) -> Response {
    sidecar.journal.write(Event::Finished { transfer: id.clone() });
    let transfers = sidecar.transfers.lock();
    let Some(known) = transfers.values().find(|known| known.id == id) else {
        return problem(404, "not_found", "never");
    };
    known.cancelled.cancel();
    Json(json!({"transfer_id": id, "state": if known.landed { "done" } else { "failed" }})).into_response()
}

async fn finish_all(State(sidecar): State<Arc<Sidecar>>, Json(body): Json<Value>) -> Response {
    for id in body["transfer_ids"].as_array().unwrap() {
        drop(finish(State(Arc::clone(&sidecar)), Path(id.as_str().unwrap().to_owned())).await);
    }
    Json(json!({})).into_response()
}

async fn claim(State(sidecar): State<Arc<Sidecar>>, Path(id): Path<String>) -> Response {
    let freed = sidecar.freed.lock().contains_key(&id);
    sidecar.journal.write(Event::Claimed { transfer: id });
    if freed {
        return problem(409, "cancelled", "never");
    }
    Json(json!({"collect_by_ms": sidecar.collect_by_ms})).into_response()
}

async fn report(State(sidecar): State<Arc<Sidecar>>, Json(body): Json<Value>) -> Response {
    sidecar.journal.write(Event::Reported { body });
    Json(json!({})).into_response()
}

async fn release(
    State(sidecar): State<Arc<Sidecar>>,
    Path(request): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> StatusCode {
    let rank = query["dp_rank"].parse().expect("a rank");
    sidecar.journal.write(match query["reason"].as_str() {
        "read" => Event::Forgotten { request, rank },
        reason => {
            assert_eq!(reason, "abandoned");
            Event::Released { request, rank }
        }
    });
    StatusCode::NO_CONTENT
}

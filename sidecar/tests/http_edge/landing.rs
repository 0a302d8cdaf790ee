//! The good path and its ends over HTTP: real engines' protocol (the embedded engine), memory copied inside this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use clap::Parser as _;
use nixl::loopback::LoopbackNet;
use serde_json::{Value, json};
use serving::Port;
use side_channel::{Endpoint, InProcess, SideChannel};
use sidecar::http::{Api, api, serve, terms};
use sidecar::lifecycle::Lifecycle;
use sidecar::model::{Faults, Role};
use sidecar::pod::{Parts, Pod};
use sidecar::receipt_log::ReceiptLog;
use sim::seams::{LoopbackAgents, Seams};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::ServiceExt as _;

use crate::rig::{self, Loopback, Rig, RouterEngine, json_request};

const SOON: Duration = Duration::from_secs(20);

/// A P engine, a D engine, and the sidecar of one of them.
pub(crate) struct Path {
    p: sim::pod::Pod,
    d: sim::pod::Pod,
    pub(crate) rig: Rig,
    receipts: PathBuf,
    _folder: tempfile::TempDir,
}

pub(crate) async fn engine(seams: &Seams, more: &str) -> sim::pod::Pod {
    let flags = "sim --layers 2 --kv-heads 4 --head-size 8 --block-size 4 --num-blocks 129 --side-channel 127.0.0.1:0";
    let args = sim::config::Args::try_parse_from(flags.split_whitespace().chain(more.split_whitespace())).unwrap();
    sim::pod::Pod::start(args.pod().unwrap(), seams).await.unwrap()
}

impl Path {
    pub(crate) async fn new(role: Role, faults: Faults) -> Self {
        let net = LoopbackNet::new();
        let side_channel: Arc<dyn SideChannel> = Arc::new(InProcess::new());
        let agents = Arc::new(LoopbackAgents::new(net.clone()));
        let seams = Seams { agents, side_channel: Arc::clone(&side_channel) };
        let (p, d) = (engine(&seams, "").await, engine(&seams, "").await);
        let own = if role == Role::Decode { &d } else { &p };
        let folder = tempfile::tempdir().unwrap();
        let receipts = folder.path().join("receipts.jsonl");
        let parts = Parts {
            fabrics: Arc::new(Loopback(net)),
            engine: Arc::new(RouterEngine(own.router())),
            side_channel,
            receipts: Arc::new(ReceiptLog::open(&receipts).unwrap()),
            ..rig::parts()
        };
        let mut config = rig::config(role, 1, 0);
        config.engine_side_channel = Endpoint::new("127.0.0.1", own.side_channel_ports()[0]);
        config.faults = faults;
        let lifecycle = Lifecycle::default();
        let pod = Pod::start(config, parts, lifecycle.tasks(), lifecycle.core().clone()).await.unwrap();
        let router = api(Api::new(pod.clone(), None, rig::build(), rig::log_filter(), &lifecycle));
        let path = Self { p, d, rig: Rig { pod, lifecycle, router }, receipts, _folder: folder };
        path.rig.until("/readyz", |answer| answer.status == 200).await;
        path
    }

    /// Prefills on P and returns what it answers.
    pub(crate) async fn prefill(&self, first: u32) -> Value {
        prefill(&self.p, first).await
    }

    pub(crate) async fn start(&self, attempt: &str, params: &Value) -> Value {
        let answer = self.rig.post("/v1/transfers", &start(attempt, params)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    }
}

/// Prefills on an engine and returns what it answers.
pub(crate) async fn prefill(engine: &sim::pod::Pod, first: u32) -> Value {
    let body = json!({"prompt": prompt(first), "max_tokens": 1, "kv_transfer_params": {
        "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null, "remote_block_ids": null,
        "remote_host": null, "remote_port": null}});
    complete(engine.router(), body).await["kv_transfer_params"].clone()
}

pub(crate) fn prompt(first: u32) -> Value {
    json!((0..30).map(|token| first + token).collect::<Vec<_>>())
}

pub(crate) fn start(attempt: &str, params: &Value) -> Value {
    json!({
        "attempt_id": attempt, "request_id": "label", "dp_rank": 0, "kv_transfer_params": params,
        "deadline_ms": 10_000, "lease_ms": 30_000, "prefill_done_age_ms": 0,
    })
}

pub(crate) async fn complete(engine: Router, body: Value) -> Value {
    let answer = engine.oneshot(json_request("/v1/completions", body.to_string())).await.unwrap();
    let status = answer.status();
    let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn a_landing_answers_with_a_receipt_that_is_on_record_and_the_decode_says_the_right_text() {
    let path = Path::new(Role::Decode, Faults::default()).await;
    let params = path.prefill(100).await;
    let landed = path.start("a-1", &params).await;

    let receipt = &landed["receipt"];
    assert_eq!(receipt["dp_rank"], 0);
    assert_eq!(receipt["source_engine_id"], params["remote_engine_id"]);
    assert!(receipt["bytes"].as_u64().unwrap() > 0);
    let logged = std::fs::read_to_string(&path.receipts).unwrap();
    let line: Value = serde_json::from_str(logged.lines().next().unwrap()).unwrap();
    assert_eq!(line["transfer_id"], landed["transfer_id"]);
    assert_eq!(line["request_id"], receipt["request_id"]);

    let rewritten = &landed["kv_transfer_params"];
    assert_eq!(rewritten["remote_engine_id"], receipt["virtual_engine_id"]);
    assert_ne!(rewritten["remote_port"], params["remote_port"]);
    let decoded = complete(path.d.router(), json!({"prompt": prompt(100), "kv_transfer_params": rewritten})).await;
    let unsplit = complete(path.p.router(), json!({"prompt": prompt(100)})).await;
    assert_eq!(decoded["choices"][0]["text"], unsplit["choices"][0]["text"]);

    let one = format!("/v1/transfers/{}", landed["transfer_id"].as_str().unwrap());
    let done = path.rig.until(&one, |answer| answer.json()["state"] == "done").await.json();
    assert_eq!(done["collected_by"], 0, "{done}");
    for stage in ["queued", "handshake", "post", "wire", "verify", "landed_idle", "collect"] {
        assert!(done["stages_us"].get(stage).is_some(), "{stage}: {done}");
    }
    let slowest = path.rig.get("/v1/transfers?state=done&dp_rank=0&slowest=5").await.json();
    assert_eq!(slowest["transfers"].as_array().unwrap().len(), 1);
    for (attempt, count) in [("a-1", 1), ("a-2", 0)] {
        let listed = path.rig.get(&format!("/v1/transfers?attempt_id={attempt}")).await.json();
        assert_eq!(listed["transfers"].as_array().unwrap().len(), count, "{attempt}");
    }
    let page = path.rig.get("/metrics").await.text;
    assert!(page.contains("kv_transfer_ended_total{outcome=\"landed\"} 1\n"), "{page}");
    assert!(page.contains(&format!("kv_transfer_bytes_total {}\n", receipt["bytes"])), "{page}");
}

#[tokio::test]
async fn who_does_not_wait_finds_the_receipt_under_the_location() {
    let path = Path::new(Role::Decode, Faults::default()).await;
    let params = path.prefill(200).await;
    let mut request = json_request("/v1/transfers", start("a-1", &params).to_string());
    request.headers_mut().insert("prefer", "respond-async".parse().unwrap());
    let accepted = path.rig.call(request).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    assert_eq!(accepted.headers["preference-applied"], "respond-async");
    let location = accepted.headers["location"].to_str().unwrap();
    let landed = path.rig.get(&format!("{location}?wait=10s")).await.json();
    assert_eq!(landed["state"], "landed", "{landed}");
    assert_eq!(landed["transfer_id"], accepted.json()["transfer_id"]);
    assert!(landed["receipt"]["request_id"].is_string() && landed["kv_transfer_params"].is_object(), "{landed}");
}

#[tokio::test]
async fn a_landed_transfer_is_claimed_until_it_is_deleted() {
    let path = Path::new(Role::Decode, Faults::default()).await;
    let landed = path.start("a-1", &path.prefill(300).await).await;
    let one = format!("/v1/transfers/{}", landed["transfer_id"].as_str().unwrap());
    let claimed = path.rig.post(&format!("{one}/claim"), &json!({})).await;
    assert_eq!(claimed.status, 200, "{}", claimed.text);
    assert_eq!(claimed.json()["collect_by_ms"], landed["receipt"]["collect_by_ms"]);
    path.rig.until("/v1/handles", |answer| answer.json()["handles"][0]["state"] == "landed").await;

    for _ in 0..2 {
        let deleted = path.rig.delete(&one).await;
        assert_eq!(deleted.status, 200, "{}", deleted.text);
        assert_eq!(deleted.json()["failure"], Value::Null);
    }
}

#[tokio::test]
async fn many_landed_transfers_are_finished_with_one_request() {
    let path = Path::new(Role::Decode, Faults::default()).await;
    let mut ids = vec![json!("0-unknown")];
    for attempt in ["a-1", "a-2"] {
        ids.push(path.start(attempt, &path.prefill(300).await).await["transfer_id"].clone());
    }
    for _ in 0..2 {
        let told = path.rig.post("/v1/finished-transfers", &json!({"transfer_ids": ids})).await;
        assert_eq!((told.status.as_u16(), told.json()), (200, json!({"finished": 2, "unknown": 1})));
    }
    path.rig.until("/v1/handles", |answer| answer.json()["handles"] == json!([])).await;
    let too_many = json!({"transfer_ids": vec!["0-x"; 257]});
    assert_eq!(path.rig.post("/v1/finished-transfers", &too_many).await.problem().1, "params_invalid");
}

#[tokio::test]
async fn an_attempt_is_one_transfer_and_no_other() {
    let path = Path::new(Role::Decode, Faults::default()).await;
    let (one, other) = (path.prefill(400).await, path.prefill(500).await);
    let first = path.start("a-1", &one).await;
    assert_eq!(path.start("a-1", &one).await["transfer_id"], first["transfer_id"]);
    let conflict = path.rig.post("/v1/transfers", &start("a-1", &other)).await;
    assert_eq!(conflict.problem(), (409, "attempt_conflict".to_owned(), "never".to_owned()));
}

#[tokio::test]
async fn refusals_that_need_a_working_pod() {
    let path = Path::new(Role::Decode, Faults::default()).await;
    let params = path.prefill(600).await;
    let check = async |change: fn(&mut Value), problem: (u16, &str, &str)| {
        let mut body = start(problem.1, &params);
        change(&mut body);
        let answer = path.rig.post("/v1/transfers", &body).await;
        let (status, code, retry) = answer.problem();
        assert_eq!((status, code.as_str(), retry.as_str()), problem, "{}", answer.text);
    };
    check(|body| body["prefill_done_age_ms"] = json!(60_000), (409, "lease_expired", "new_prefill")).await;
    check(|body| body["kv_transfer_params"]["remote_num_tokens"] = json!(300), (400, "params_invalid", "never")).await;
    check(|body| body["kv_transfer_params"]["remote_engine_id"] = json!("gone"), (502, "peer_changed", "new_prefill"))
        .await;
    check(|body| body["kv_transfer_params"]["remote_port"] = json!(1), (502, "peer_unreachable", "new_prefill")).await;
    check(|body| body["kv_transfer_params"]["tp_size"] = json!(2), (400, "params_invalid", "never")).await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_transfer() {
    let hold = Faults { hold_pull: Some(Duration::from_secs(600)), ..Faults::default() };
    let path = Path::new(Role::Decode, hold).await;
    let params = path.prefill(700).await;
    let request = json_request("/v1/transfers", start("a-1", &params).to_string());
    let asking = path.rig.router.clone().oneshot(request);
    let begun = path.rig.until("/v1/transfers", |answer| !answer.json()["transfers"].as_array().unwrap().is_empty());
    tokio::select! {
        answer = asking => panic!("answered: {answer:?}"),
        _ = begun => {} // `asking` is dropped here, as hyper drops a handler whose client has gone.
    }
    let cancelled = |answer: &rig::Answer| answer.json()["transfers"][0]["failure"]["code"] == "cancelled";
    path.rig.until("/v1/transfers", cancelled).await;
}

#[tokio::test]
async fn a_connection_that_breaks_cancels_its_transfer() {
    let hold = Faults { hold_pull: Some(Duration::from_secs(600)), ..Faults::default() };
    let path = Path::new(Role::Decode, hold).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let api = Api::new(path.rig.pod.clone(), None, rig::build(), rig::log_filter(), &path.rig.lifecycle);
    path.rig.lifecycle.tasks().spawn(serve(Port::plain(listener), api, terms(64)));

    let body = start("a-1", &path.prefill(750).await).to_string();
    let head = "POST /v1/transfers HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    socket.write_all(request.as_bytes()).await.unwrap();
    let begun = |answer: &rig::Answer| !answer.json()["transfers"].as_array().unwrap().is_empty();
    path.rig.until("/v1/transfers", begun).await;
    drop(socket);
    let cancelled = |answer: &rig::Answer| answer.json()["transfers"][0]["failure"]["code"] == "cancelled";
    path.rig.until("/v1/transfers", cancelled).await;
}

#[tokio::test]
async fn a_deadline_that_passes_ends_in_504() {
    let hold = Faults { hold_pull: Some(Duration::from_secs(600)), ..Faults::default() };
    let path = Path::new(Role::Decode, hold).await;
    let mut body = start("a-1", &path.prefill(800).await);
    body["deadline_ms"] = json!(50);
    let late = timeout(SOON, path.rig.post("/v1/transfers", &body)).await.unwrap();
    assert_eq!(late.problem(), (504, "deadline".to_owned(), "other_target".to_owned()));
}

#[tokio::test]
async fn a_prefill_pod_notes_handles_and_releases_them() {
    let path = Path::new(Role::Prefill, Faults::default()).await;
    let params = path.prefill(900).await;
    let request = params["remote_request_id"].as_str().unwrap().to_owned();
    let report = json!({
        "dp_rank": 0, "remote_request_id": request, "remote_engine_id": params["remote_engine_id"],
        "kv_transfer_params": params, "lease_ms": 30_000, "age_ms": 0,
    });
    let noted = path.rig.post("/v1/handles", &report).await;
    assert_eq!(noted.status, 200, "{}", noted.text);
    assert_eq!(noted.json()["state"], "pinned");
    let listed = |answer: &rig::Answer| answer.json()["handles"][0]["remote_request_id"] == request.as_str();
    path.rig.until("/v1/handles?dp_rank=0", listed).await;
    let refused = path.rig.post("/v1/transfers", &start("a-1", &params)).await;
    assert_eq!(refused.problem().1, "params_invalid", "a prefill pod pulls nothing");

    let delete = Request::delete(format!("/v1/handles/{request}?dp_rank=0"));
    let released = path.rig.call(delete.body(Body::empty()).unwrap()).await;
    assert_eq!(released.status, 204, "{}", released.text);
    let freed =
        |answer: &rig::Answer| answer.json()["handles"].as_array().unwrap().iter().all(|h| h["state"] == "released");
    path.rig.until("/v1/handles", freed).await;
}

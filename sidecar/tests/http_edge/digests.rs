//! `/v1/digests` and what a decode pod's sidecar makes of it, over HTTP between the two.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::Request;
use kv::digest::Verify;
use kv::ids::{BlockId, EngineId, EngineRequestId};
use nixl::loopback::LoopbackNet;
use secrets::Tokens;
use serde_json::{Value, json};
use serving::Port;
use side_channel::{Endpoint, InProcess, SideChannel};
use sidecar::digest::DigestAsk;
use sidecar::digest::source::SourceDigests as _;
use sidecar::http::{Api, HttpSources, api, serve, terms};
use sidecar::lifecycle::Lifecycle;
use sidecar::model::{Code, Faults, Role, Spoil};
use sidecar::peer_allow::PeerAllow;
use sidecar::pod::{Parts, Pod};
use sim::seams::{LoopbackAgents, Seams};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::landing::{complete, engine, prefill, prompt, start};
use crate::rig::{self, Answer, Loopback, Rig, RouterEngine, json_request};

/// Two engines with a sidecar each; P's is reached over TCP.
struct Pair {
    p: sim::pod::Pod,
    d: sim::pod::Pod,
    prefill: Rig,
    decode: Rig,
    /// P's sidecar.
    source: String,
}

fn token(text: &str) -> Arc<Tokens> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Tokens::from_file(file.path()).unwrap()
}

impl Pair {
    async fn new(verify: Verify, faults: Faults) -> Self {
        Self::with(verify, faults, "secret", "").await
    }

    /// D's sidecar shows this token; P's wants `secret`. P's engine has these flags.
    async fn with(verify: Verify, faults: Faults, shown: &str, flags: &str) -> Self {
        let net = LoopbackNet::new();
        let side_channel: Arc<dyn SideChannel> = Arc::new(InProcess::new());
        let seams =
            Seams { agents: Arc::new(LoopbackAgents::new(net.clone())), side_channel: Arc::clone(&side_channel) };
        let (p, d) = (engine(&seams, flags).await, engine(&seams, "").await);
        let rig = async |role, own: &sim::pod::Pod, tokens: (Option<Arc<Tokens>>, &str)| {
            let parts = Parts {
                fabrics: Arc::new(Loopback(net.clone())),
                engine: Arc::new(RouterEngine(own.router())),
                side_channel: Arc::clone(&side_channel),
                sources: Arc::new(HttpSources::new(Some(token(tokens.1)), None, PeerAllow::Anybody)),
                ..rig::parts()
            };
            let mut config = rig::config(role, 1, 0);
            config.engine_side_channel = Endpoint::new("127.0.0.1", own.side_channel_ports()[0]);
            (config.verify, config.faults) = (verify, faults);
            let lifecycle = Lifecycle::default();
            let pod = Pod::start(config, parts, lifecycle.tasks(), lifecycle.core().clone()).await.unwrap();
            let router = api(Api::new(pod.clone(), tokens.0, rig::build(), rig::log_filter(), &lifecycle));
            let rig = Rig { pod, lifecycle, router };
            rig.until("/readyz", |answer| answer.status == 200).await;
            rig
        };
        let prefill = rig(Role::Prefill, &p, (Some(token("secret")), shown)).await;
        let decode = rig(Role::Decode, &d, (None, shown)).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source = format!("http://{}", listener.local_addr().unwrap());
        let with_token =
            Api::new(prefill.pod.clone(), Some(token("secret")), rig::build(), rig::log_filter(), &prefill.lifecycle);
        prefill.lifecycle.tasks().spawn(serve(Port::plain(listener), with_token, terms(64)));
        Self { p, d, prefill, decode, source }
    }

    async fn transfer(&self, attempt: &str, first: u32, change: impl Fn(&mut Value)) -> Answer {
        let mut body = start(attempt, &prefill(&self.p, first).await);
        body["source_sidecar"] = json!(self.source);
        change(&mut body);
        self.decode.post("/v1/transfers", &body).await
    }

    /// Asks P's sidecar itself.
    async fn ask(&self, body: &Value) -> Answer {
        let mut request = json_request("/v1/digests", body.to_string());
        request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
        self.prefill.call(request).await
    }
}

#[tokio::test]
async fn a_receipt_says_what_was_compared_and_the_text_is_right() {
    let pair = Pair::new(Verify::Sample(3), Faults::default()).await;
    let answer = pair.transfer("a-1", 100, |_| {}).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let landed = answer.json();
    let digest = &landed["receipt"]["digest"];
    assert_eq!(
        (&digest["algorithm"], &digest["verify"], &digest["blocks"]),
        (&json!("xxh64-4k"), &json!("sample:3"), &json!(3))
    );
    assert_eq!(digest["value"].as_str().unwrap().len(), 16);
    // 30 tokens are 8 blocks of 4.
    assert_eq!(digest["bytes"].as_u64().unwrap() * 8, landed["receipt"]["bytes"].as_u64().unwrap() * 3);

    let shown = pair.decode.get(&format!("/v1/transfers/{}", landed["transfer_id"].as_str().unwrap())).await.json();
    let digests = &shown["read"]["digests"];
    assert_eq!((&digests["blocks"], &digests["bytes"]), (&json!(3), &digest["bytes"]), "{shown}");
    assert!(digests["source_us"].is_u64() && digests["compare_us"].is_u64(), "{shown}");
    assert!(shown["stages_us"]["verify"].is_u64());
    let page = pair.decode.get("/metrics").await.text;
    assert!(page.contains(&format!("kv_digest_compared_bytes_total {}\n", digest["bytes"])), "{page}");
    let mut request = Request::get("/metrics").body(axum::body::Body::empty()).unwrap();
    request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
    let page = pair.prefill.call(request).await.text;
    assert!(page.contains(&format!("kv_digest_served_bytes_total {}\n", digest["bytes"])), "{page}");

    let decode = json!({"prompt": prompt(100), "kv_transfer_params": landed["kv_transfer_params"]});
    let (decoded, unsplit) =
        (complete(pair.d.router(), decode).await, complete(pair.p.router(), json!({"prompt": prompt(100)})).await);
    assert_eq!(decoded["choices"][0]["text"], unsplit["choices"][0]["text"]);

    let more = pair.transfer("a-2", 200, |body| body["verify"] = json!("full")).await.json();
    assert_eq!(
        (&more["receipt"]["digest"]["verify"], &more["receipt"]["digest"]["blocks"]),
        (&json!("full"), &json!(8))
    );
}

#[tokio::test]
async fn what_differs_is_refused_and_wants_a_new_prefill() {
    let faults = Faults { spoil: Some(Spoil::Flip), ..Faults::default() };
    let pair = Pair::new(Verify::Full, faults).await;
    let answer = pair.transfer("a-1", 100, |_| {}).await;
    assert_eq!(answer.problem(), (409, "digest_mismatch".to_owned(), "new_prefill".to_owned()));
    assert!(answer.detail().contains("16 of 16 digests"), "{}", answer.text);
    let shown = pair.decode.get("/v1/transfers").await.json();
    assert_eq!(shown["transfers"][0]["failure"]["code"], "digest_mismatch", "{shown}");
    let page = pair.decode.get("/metrics").await.text;
    assert!(page.contains("kv_transfer_ended_total{outcome=\"digest_mismatch\"} 1\n"), "{page}");
}

#[tokio::test]
async fn an_engine_that_overwrites_its_blocks_before_they_are_read_is_found_out() {
    let held = Faults { hold_pull: Some(Duration::from_millis(800)), ..Faults::default() };
    let flags = "--fault overwrite-pinned=300 --prefix-caching off";
    let pair = Pair::with(Verify::Full, held, "secret", flags).await;
    let answer = pair.transfer("a-1", 100, |_| {}).await;
    assert_eq!(answer.problem(), (409, "digest_mismatch".to_owned(), "new_prefill".to_owned()));
    let unseen = Pair::with(Verify::Off, held, "secret", flags).await;
    let landed = unseen.transfer("a-1", 100, |_| {}).await.json();
    assert!(landed["receipt"]["digest"].is_null(), "{landed}");
    let decode = json!({"prompt": prompt(100), "kv_transfer_params": landed["kv_transfer_params"]});
    let decoded = complete(unseen.d.router(), decode).await;
    let right = complete(unseen.d.router(), json!({"prompt": prompt(100)})).await;
    assert_ne!(decoded["choices"][0]["text"], right["choices"][0]["text"], "without digests it is a wrong text");
}

#[tokio::test]
async fn a_source_that_cannot_be_asked_is_an_unreachable_peer() {
    let unreachable = (502, "peer_unreachable".to_owned(), "new_prefill".to_owned());
    let pair = Pair::with(Verify::Sample(2), Faults::default(), "guess", "").await;
    let stranger = pair.transfer("a-1", 100, |_| {}).await;
    assert_eq!(stranger.problem(), unreachable);
    assert!(stranger.detail().contains("401") && stranger.detail().contains("unauthorized"), "{}", stranger.text);
    assert!(!stranger.text.contains("guess"), "the token is nobody's business");
    let nobody = pair.transfer("a-2", 200, |body| body["source_sidecar"] = json!("http://127.0.0.1:1")).await;
    assert_eq!(nobody.problem(), unreachable);
    assert!(nobody.detail().contains("http://127.0.0.1:1"), "{}", nobody.text);
    let shown = pair.decode.get("/v1/transfers?slowest=5").await.json();
    assert!(shown["transfers"].as_array().unwrap().iter().all(|one| one["receipt"].is_null()), "{shown}");
}

#[tokio::test]
async fn whom_to_ask_and_how_much_are_checked() {
    let pair = Pair::new(Verify::Full, Faults::default()).await;
    let refused = async |field: &str, value: Value| {
        let answer = pair.transfer("a-1", 100, |body| body[field] = value.clone()).await;
        assert_eq!(answer.problem(), (400, "params_invalid".to_owned(), "never".to_owned()), "{value}");
        answer.detail()
    };
    assert!(refused("source_sidecar", Value::Null).await.contains("source_sidecar"));
    for no in ["", "/v1", "ftp://x", "http://x:1/?a=b"] {
        assert!(refused("source_sidecar", json!(no)).await.starts_with("source_sidecar:"), "{no}");
    }
    for no in ["", "on", "sample:1", "sample:x"] {
        assert!(refused("verify", json!(no)).await.starts_with("verify:"), "{no}");
    }
}

#[tokio::test]
async fn digests_are_told_by_shard_and_block() {
    let pair = Pair::new(Verify::Off, Faults::default()).await;
    let params = prefill(&pair.p, 100).await;
    let blocks = params["remote_block_ids"][0].as_array().unwrap();
    let body = json!({
        "engine_id": params["remote_engine_id"], "request_id": params["remote_request_id"],
        "block_ids": [[blocks[0], blocks[1], blocks[0]]], "deadline_ms": 5000,
    });
    let answer = pair.ask(&body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let told = answer.json();
    assert_eq!((&told["algorithm"], &told["engine_id"]), (&json!("xxh64-4k"), &params["remote_engine_id"]));
    let texts = told["shards"][0].as_array().unwrap();
    assert_eq!(texts.len(), 3);
    // Two layers.
    assert!(texts.iter().all(|text| text.as_str().unwrap().len() == 32), "{told}");
    assert!(texts[0] == texts[2] && texts[0] != texts[1]);

    let refused = async |field: &str, value: Value| {
        let mut body = body.clone();
        body[field] = value;
        let (status, code, _) = pair.ask(&body).await.problem();
        (status, code)
    };
    assert_eq!(refused("engine_id", json!("gone")).await, (502, "peer_changed".to_owned()));
    assert_eq!(refused("engine_id", json!("")).await, (400, "params_invalid".to_owned()));
    assert_eq!(refused("block_ids", json!([[129]])).await, (400, "params_invalid".to_owned()));
    assert_eq!(refused("block_ids", json!([[1], [2]])).await, (400, "params_invalid".to_owned()));
    assert_eq!(refused("block_ids", json!([vec![1; 131_072]])).await, (413, "too_large".to_owned()));
    assert_eq!(refused("deadline_ms", json!(0)).await, (400, "params_invalid".to_owned()));
    assert_eq!(pair.decode.post("/v1/digests", &body).await.problem().1, "params_invalid", "D holds no prefills");
    assert_eq!(pair.prefill.post("/v1/digests", &body).await.problem().0, 401, "no token");
}

/// Answers each question with the next of these refusals, and then with the last for ever.
async fn refusing(answers: &'static [(u16, &'static str)]) -> (http::Uri, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let refuse = async move || {
        let nth = counted.fetch_add(1, Ordering::SeqCst);
        let (status, code) = answers[nth.min(answers.len() - 1)];
        (http::StatusCode::from_u16(status).unwrap(), json!({ "code": code, "detail": "so" }).to_string())
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let routes = axum::Router::new().route("/v1/digests", axum::routing::post(refuse));
    TaskTracker::new().spawn(async move { axum::serve(listener, routes).await });
    (uri, asked)
}

#[tokio::test]
async fn a_source_that_has_no_room_just_now_is_asked_again_until_nobody_waits() {
    let ask = |within: u64| DigestAsk {
        engine: EngineId::new("p"),
        request: EngineRequestId::new("r"),
        blocks: vec![vec![BlockId(1)]],
        deadline: Instant::now() + Duration::from_millis(within),
        trace: None,
    };
    let sources = HttpSources::new(None, None, PeerAllow::Anybody);
    let answers = &[(429, "staging_full"), (503, "too_many_connections"), (502, "peer_changed")];
    let (uri, asked) = refusing(answers).await;
    let error = sources.ask(&uri, &ask(60_000)).await.unwrap_err();
    assert_eq!((error.code(), asked.load(Ordering::SeqCst)), (Code::PeerChanged, 3), "{error}");
    let (uri, asked) = refusing(&[(429, "staging_full")]).await;
    let error = sources.ask(&uri, &ask(300)).await.unwrap_err();
    assert_eq!(error.code(), Code::PeerUnreachable);
    assert!(asked.load(Ordering::SeqCst) > 1);
    let (uri, asked) = refusing(&[(503, "rank_not_ready")]).await;
    sources.ask(&uri, &ask(60_000)).await.unwrap_err();
    assert_eq!(asked.load(Ordering::SeqCst), 1, "that is no matter of room");
}

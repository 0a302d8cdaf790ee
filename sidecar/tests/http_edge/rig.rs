//! A pod whose engine is not there, behind the real router.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use futures_util::future::BoxFuture;
use kv::ids::{AttemptId, DpRank, EngineId, EngineRequestId, TransferId};
use nixl::loopback::LoopbackNet;
use nixl::{AgentName, Fabric};
use secrets::Tokens;
use serde_json::{Value, json};
use side_channel::{Endpoint, InProcess};
use sidecar::digest::source::NoSources;
use sidecar::engine_http::{EngineHttp, GetError, Page, TcpEngine};
use sidecar::fabrics::{Fabrics, MadeAgent};
use sidecar::http::{Api, api};
use sidecar::lifecycle::Lifecycle;
use sidecar::metrics::Build;
use sidecar::model::{Faults, Landed, NoReceiptSink, PodConfig, Receipt, Role, Stages, StagingKind};
use sidecar::peer_allow::PeerAllow;
use sidecar::pod::{Parts, Pod};
use telemetry::log_filter::{LogFilter, LogFilterError};
use telemetry::trace::Spans;
use tower::ServiceExt;
use vllm_wire::params::KvTransferParams;

/// Port 1 is nobody's.
const NOBODY: &str = "http://127.0.0.1:1";

#[derive(Debug)]
pub(crate) struct Loopback(pub(crate) LoopbackNet);

impl Fabrics for Loopback {
    fn pull(&self, name: AgentName, _: Option<cuda::Gpu>) -> MadeAgent {
        let agent: Arc<dyn Fabric> = self.0.agent(name);
        Box::pin(async { Ok(agent) })
    }

    fn serve(&self, name: AgentName, _: Option<cuda::Gpu>) -> MadeAgent {
        self.pull(name, None)
    }
}

/// An engine's pages without a socket.
#[derive(Debug)]
pub(crate) struct RouterEngine(pub(crate) Router);

impl EngineHttp for RouterEngine {
    fn get<'a>(&'a self, path: &'static str, deadline: Duration) -> BoxFuture<'a, Result<Page, GetError>> {
        Box::pin(async move {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let answer = tokio::time::timeout(deadline, self.0.clone().oneshot(request)).await.unwrap().unwrap();
            let status = answer.status();
            let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            Ok(Page { status, body })
        })
    }
}

/// What a pod is made of when nothing of it is real.
pub(crate) fn parts() -> Parts {
    Parts {
        fabrics: Arc::new(Loopback(LoopbackNet::new())),
        engine: Arc::new(TcpEngine::new(NOBODY.parse().unwrap(), None)),
        side_channel: Arc::new(InProcess::new()),
        receipts: Arc::new(NoReceiptSink),
        spans: Spans::default(),
        sources: Arc::new(NoSources),
    }
}

/// Ranks `offset` to `offset + dp_size - 1`; their engine does not answer (port 1 is nobody's).
pub(crate) fn config(role: Role, dp_size: u16, offset: u16) -> PodConfig {
    PodConfig {
        role,
        engine: NOBODY.parse().unwrap(),
        engine_side_channel: Endpoint::new("127.0.0.1", 1),
        side_channel_listen: Endpoint::new("127.0.0.1", 0),
        advertise_host: "127.0.0.1".to_owned(),
        dp_size,
        tp_size: 1,
        rank_offset: offset,
        staging: StagingKind::Dram,
        gpus: Vec::new(),
        staging_bytes: 1 << 20,
        staging_wait: Duration::from_millis(100),
        kv_lease: Duration::from_secs(30),
        verify: kv::digest::Verify::Off,
        zero_on_release: false,
        peers: PeerAllow::Anybody,
        faults: Faults::default(),
    }
}

pub(crate) fn build() -> Build {
    Build {
        version: "1.2.3",
        git_sha: "abc",
        nixl_path: "nixl.so".to_owned(),
        nixl_version: "1.5.1".to_owned(),
        nixl_mock: false,
    }
}

/// A filter that takes anything but `=`.
pub(crate) fn log_filter() -> LogFilter {
    LogFilter::new("info", |filter| match filter.contains('=') {
        true => Err(LogFilterError::Unreadable(filter.to_owned())),
        false => Ok(()),
    })
}

pub(crate) struct Rig {
    pub(crate) pod: Pod,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) router: Router,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Status, code, retry: what a client decides on. Checks that it is a problem document.
    pub(crate) fn problem(&self) -> (u16, String, String) {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.text);
        let json = self.json();
        assert_eq!(json["status"], self.status.as_u16());
        assert!(json["title"].is_string() && json["detail"].is_string() && json["type"].is_string(), "{json}");
        let word = |member: &str| json[member].as_str().unwrap().to_owned();
        (self.status.as_u16(), word("code"), word("retry"))
    }

    pub(crate) fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap().to_owned()
    }
}

impl Rig {
    pub(crate) async fn new(role: Role, dp_size: u16, offset: u16, token: Option<Arc<Tokens>>) -> Self {
        let lifecycle = Lifecycle::default();
        let config = config(role, dp_size, offset);
        let pod = Pod::start(config, parts(), lifecycle.tasks(), lifecycle.core().clone()).await.unwrap();
        let router = api(Api::new(pod.clone(), token, build(), log_filter(), &lifecycle));
        Self { pod, lifecycle, router }
    }

    /// One rank, and the network that its agents are on.
    pub(crate) async fn on_loopback(role: Role) -> (Self, LoopbackNet) {
        let net = LoopbackNet::new();
        let parts = Parts { fabrics: Arc::new(Loopback(net.clone())), ..parts() };
        (Self::with(config(role, 1, 0), parts, Lifecycle::default()).await, net)
    }

    pub(crate) async fn with(config: PodConfig, parts: Parts, lifecycle: Lifecycle) -> Self {
        let pod = Pod::start(config, parts, lifecycle.tasks(), lifecycle.core().clone()).await.unwrap();
        let router = api(Api::new(pod.clone(), None, build(), log_filter(), &lifecycle));
        Self { pod, lifecycle, router }
    }

    pub(crate) async fn decode() -> Self {
        Self::new(Role::Decode, 2, 8, None).await
    }

    pub(crate) async fn call(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = to_bytes(body, 1 << 24).await.unwrap();
        Answer { status: head.status, headers: head.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// Asks again until the answer is as wished.
    pub(crate) async fn until(&self, path: &str, wished: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let answer = self.get(path).await;
            if wished(&answer) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path} still answers {}", answer.text);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(json_request(path, body.to_string())).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call(Request::delete(path).body(Body::empty()).unwrap()).await
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.lifecycle.stop().cancel();
        self.lifecycle.core().cancel();
    }
}

pub(crate) fn json_request(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}

pub(crate) fn params() -> Value {
    json!({
        "do_remote_prefill": true,
        "do_remote_decode": false,
        "remote_block_ids": [[1, 2, 3]],
        "remote_engine_id": "engine-p0",
        "remote_request_id": "cmpl-1-0-abc",
        "remote_host": "127.0.0.1",
        "remote_port": 5600,
        "tp_size": 1,
        "remote_num_tokens": 48,
    })
}

/// A transfer that is well formed and asks for `rank`.
pub(crate) fn transfer(rank: u16) -> Value {
    json!({
        "attempt_id": "attempt-1",
        "request_id": "label-1",
        "dp_rank": rank,
        "kv_transfer_params": params(),
        "deadline_ms": 2000,
        "lease_ms": 30000,
        "prefill_done_age_ms": 5,
        "a member of a newer router": true,
    })
}

/// A transfer's good end.
pub(crate) fn landed(transfer: &str) -> Landed {
    Landed {
        transfer: TransferId::new(transfer),
        attempt: AttemptId::new("attempt-1"),
        receipt: Receipt {
            dp_rank: DpRank(8),
            engine_id: EngineId::new("engine-d8"),
            virtual_engine_id: EngineId::new("virtual-8"),
            source_engine_id: EngineId::new("engine-p0"),
            request_id: EngineRequestId::new("kvgate-1"),
            blocks: 3,
            bytes: 4096,
            stages: Stages::default(),
            source_lease_left: Duration::from_secs(20),
            collect_by: Duration::from_secs(60),
            digest: None,
        },
        params: KvTransferParams::parse(&params()).unwrap(),
        source_request: EngineRequestId::new("cmpl-1"),
    }
}

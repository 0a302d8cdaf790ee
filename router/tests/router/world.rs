//! A router between fakes, and a client for it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use router::config::Args;
use router::router::{Ended, Parts, Router};
use router::upstream::Pooled;
use serde_json::Value;
use telemetry::Observed;
use telemetry::log_filter::{LogFilter, LogFilterError};
use telemetry::trace::{Span, Spans, channel};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engines::{Decodes, Engine, Prefills, decode_engine, prefill_engine};
use crate::journal::Journal;
use crate::sidecars::Sidecar;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// What a test may change of the world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) ranks: u16,
    pub(crate) decode_pods: usize,
    /// One more prefill pod, whose engine cannot be reached although its sidecar finds it ready.
    pub(crate) dead_prefill: bool,
    /// One more such decode pod.
    pub(crate) dead_decode: bool,
    /// The router stands in the decode pod.
    pub(crate) pod_local: bool,
    /// No flag names the live prefill pod; its sidecar's port is the one of named pods.
    pub(crate) unnamed_prefill: bool,
    pub(crate) args: &'static str,
    pub(crate) token: Option<&'static str>,
    pub(crate) collect_by_ms: u64,
    /// Whether answers tell how they came about, which most tests read.
    pub(crate) debug_headers: bool,
    /// Whether spans are kept in the world.
    pub(crate) traced: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            ranks: 2,
            decode_pods: 1,
            dead_prefill: false,
            dead_decode: false,
            pod_local: false,
            unnamed_prefill: false,
            args: "",
            token: None,
            collect_by_ms: 30_000,
            debug_headers: true,
            traced: false,
        }
    }
}

/// A log that takes any filter that does not shout.
pub(crate) fn log_filter() -> LogFilter {
    LogFilter::new("info", |filter| match filter.contains("shout") {
        true => Err(LogFilterError::Unreadable(filter.to_owned())),
        false => Ok(()),
    })
}

/// One prefill pod, decode pods, their sidecars and the router.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) journal: Journal,
    pub(crate) prefill: Arc<Engine<Prefills>>,
    pub(crate) decodes: Vec<Arc<Engine<Decodes>>>,
    pub(crate) prefill_sidecar: Arc<Sidecar>,
    pub(crate) decode_sidecars: Vec<Arc<Sidecar>>,
    prefill_sidecar_task: JoinHandle<()>,
    decode_sidecar_tasks: Vec<JoinHandle<()>>,
    pub(crate) router: SocketAddr,
    /// The operators' port.
    pub(crate) operators: SocketAddr,
    prefill_engine: SocketAddr,
    /// Where the prefill pod is that cannot be reached.
    pub(crate) dead_prefill: Option<SocketAddr>,
    _refusing: Vec<TcpSocket>,
    pub(crate) stop: CancellationToken,
    pub(crate) served: Option<JoinHandle<Ended>>,
    /// The key that comes with every request.
    pub(crate) bearer: Option<&'static str>,
    spans: Option<tokio::sync::Mutex<mpsc::Receiver<Vec<Span>>>>,
    client: Client<HttpConnector, Full<Bytes>>,
    tasks: TaskTracker,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl World {
    /// A world whose ranks are all ready.
    pub(crate) async fn new(setup: Setup) -> Self {
        let world = Self::unready(setup).await;
        let dead = usize::from(setup.dead_prefill) + usize::from(setup.dead_decode);
        let pods = usize::from(!setup.unnamed_prefill) + setup.decode_pods + dead;
        world.wait_until_ready(usize::from(setup.ranks) * pods).await;
        world
    }

    /// A world as it starts.
    pub(crate) async fn unready(setup: Setup) -> Self {
        let (journal, tasks) = (Journal::default(), TaskTracker::new());
        let sidecar = || Sidecar::new(&journal, setup.ranks, setup.token, setup.collect_by_ms);
        let (prefill, prefill_sidecar) = (Engine::new(&journal), sidecar());
        let (p, _) = up(&tasks, prefill_engine(Arc::clone(&prefill))).await;
        let (ps, prefill_sidecar_task) = up(&tasks, Arc::clone(&prefill_sidecar).routes()).await;
        let mut line = match setup.unnamed_prefill {
            true => format!("router --sidecar-discovery-port {} ", ps.port()),
            false => format!("router --prefill http://{p},sidecar=http://{ps} "),
        };
        if setup.pod_local {
            line.push_str("--pod-local ");
        }
        let (mut dead_prefill, mut refusing) = (None, Vec::new());
        for (dead, flag) in [(setup.dead_prefill, "--prefill"), (setup.dead_decode, "--decode")] {
            if dead {
                let (socket, nobody) = dead_port();
                refusing.push(socket);
                let (its_sidecar, _) = up(&tasks, sidecar().routes()).await;
                if flag == "--prefill" {
                    dead_prefill = Some(nobody);
                }
                line.push_str(&format!("{flag} http://{nobody},sidecar=http://{its_sidecar} "));
            }
        }
        let (mut decodes, mut decode_sidecars, mut decode_sidecar_tasks) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setup.decode_pods {
            let (decode, sidecar) = (Engine::new(&journal), sidecar());
            let (d, _) = up(&tasks, decode_engine(Arc::clone(&decode))).await;
            let (ds, task) = up(&tasks, Arc::clone(&sidecar).routes()).await;
            decode_sidecar_tasks.push(task);
            line.push_str(&format!("--decode http://{d},sidecar=http://{ds} "));
            decodes.push(decode);
            decode_sidecars.push(sidecar);
        }
        if setup.debug_headers {
            line.push_str("--debug-headers ");
        }
        if !setup.args.contains("--report-handles-after-ms") {
            line.push_str("--report-handles-after-ms 0 ");
        }
        line.push_str(&format!("--intra-node-data-parallel-size {} {}", setup.ranks, setup.args));
        let config = Line::try_parse_from(line.split_whitespace()).unwrap().args.check().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = Arc::new(Pooled::tcp(config.deadlines.connect, None));
        let (spans, kept) = if setup.traced { channel(1.0) } else { (Spans::default(), mpsc::channel(1).1) };
        let observed = Observed { log_filter: log_filter(), spans };
        let parts = Parts { upstream, git_sha: "abc", id_prefix: "test".to_owned(), observed };
        let (router, stop) = (Router::start(config, parts), CancellationToken::new());
        let for_operators = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let operators = for_operators.local_addr().unwrap();
        router.serve_operators(for_operators);
        let served = tasks.spawn(router.serve(listener, stop.clone()));
        Self {
            journal,
            prefill,
            decodes,
            prefill_sidecar,
            decode_sidecars,
            prefill_sidecar_task,
            decode_sidecar_tasks,
            router: address,
            operators,
            prefill_engine: p,
            dead_prefill,
            _refusing: refusing,
            stop,
            served: Some(served),
            bearer: None,
            spans: setup.traced.then(|| tokio::sync::Mutex::new(kept)),
            client: Client::builder(TokioExecutor::new()).build_http(),
            tasks,
        }
    }

    pub(crate) fn prefill_url(&self) -> String {
        format!("http://{}", self.prefill_engine)
    }

    pub(crate) fn decode(&self) -> &Engine<Decodes> {
        &self.decodes[0]
    }

    pub(crate) fn decode_sidecar(&self) -> &Sidecar {
        &self.decode_sidecars[0]
    }

    /// From now on P's sidecar takes no connections; its event stream stays, so the router still takes its ranks for ready.
    pub(crate) async fn take_away_prefill_sidecar(&mut self) {
        self.prefill_sidecar_task.abort();
        assert!((&mut self.prefill_sidecar_task).await.unwrap_err().is_cancelled());
    }

    /// The same for a decode pod's sidecar.
    pub(crate) async fn take_away_decode_sidecar(&mut self, pod: usize) {
        self.decode_sidecar_tasks[pod].abort();
        assert!((&mut self.decode_sidecar_tasks[pod]).await.unwrap_err().is_cancelled());
    }

    pub(crate) async fn wait_until_ready(&self, ranks: usize) {
        let ready = async {
            loop {
                let answer = self.get("/readyz").await;
                let targets = answer.json()["targets"].as_array().unwrap().clone();
                if targets.iter().filter(|target| target["ready"] == true).count() == ranks {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(10), ready).await.is_ok(), "ranks do not become ready");
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.get_from(self.router, path).await
    }

    pub(crate) async fn get_from(&self, address: SocketAddr, path: &str) -> Answer {
        let request = self.with_key(Request::get(format!("http://{address}{path}"))).body(Full::default()).unwrap();
        whole(self.client.request(request).await.unwrap().map(Body::new)).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", path, headers, "").await
    }

    /// Sends any request.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.send_to(self.router, method, path, headers, body).await
    }

    /// Sends any request to either port.
    pub(crate) async fn send_to(
        &self,
        to: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("http://{to}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        whole(self.client.request(request.body(Full::new(body.into())).unwrap()).await.unwrap().map(Body::new)).await
    }

    /// Sends a request; the answer's body comes as it arrives.
    pub(crate) async fn open(&self, path: &str, body: impl Into<Bytes>, headers: &[(&str, &str)]) -> Response<Body> {
        self.request(path, body.into(), headers).await.unwrap()
    }

    fn with_key(&self, request: http::request::Builder) -> http::request::Builder {
        match self.bearer {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn request(
        &self,
        path: &str,
        body: Bytes,
        headers: &[(&str, &str)],
    ) -> impl Future<Output = Result<Response<Body>, hyper_util::client::legacy::Error>> + Send + 'static {
        let mut request = self.with_key(Request::post(format!("http://{}{path}", self.router)));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.client.request(request.body(Full::new(body)).unwrap());
        async move { answer.await.map(|answer| answer.map(Body::new)) }
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>, headers: &[(&str, &str)]) -> Answer {
        whole(self.open(path, body, headers).await).await
    }

    /// The spans of the next request that has ended.
    pub(crate) async fn spans(&self) -> Vec<Span> {
        let mut kept = self.spans.as_ref().unwrap().lock().await;
        tokio::time::timeout(Duration::from_secs(10), kept.recv()).await.unwrap().unwrap()
    }

    pub(crate) async fn complete(&self, body: impl Into<Bytes>) -> Answer {
        self.post("/v1/completions", body, &[]).await
    }

    /// A stream that D has begun with `first`, which the client has read; it goes on with what the sender is given.
    pub(crate) async fn streaming(&self, first: &'static str) -> (mpsc::Sender<Bytes>, Response<Body>) {
        let (tx, rx) = mpsc::channel(1);
        self.decode().next(Decodes::Fed(rx));
        tx.send(Bytes::from(first)).await.unwrap();
        let mut answer = self.open("/v1/completions", r#"{"prompt":"p","stream":true}"#, &[]).await;
        assert_eq!(next(answer.body_mut()).await, first);
        (tx, answer)
    }

    /// A request in the background; aborting the handle is a client that leaves.
    pub(crate) fn start(&self, body: impl Into<Bytes>) -> JoinHandle<Answer> {
        self.start_on("/v1/completions", body)
    }

    pub(crate) fn start_on(&self, path: &str, body: impl Into<Bytes>) -> JoinHandle<Answer> {
        let answer = self.request(path, body.into(), &[]);
        self.tasks.spawn(async move { whole(answer.await.unwrap()).await })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A port that refuses connections for as long as the socket lives: nobody else gets it meanwhile.
pub(crate) fn dead_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

async fn up(tasks: &TaskTracker, routes: axum::Router) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, tasks.spawn(async move { axum::serve(listener, routes).await.unwrap() }))
}

pub(crate) async fn whole(answer: Response<Body>) -> Answer {
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: head.status, headers: head.headers, body }
}

/// The next piece of a body, as text.
pub(crate) async fn next(body: &mut Body) -> String {
    let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.unwrap().unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

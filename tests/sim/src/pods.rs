//! The processes: the real router and sidecars, the embedded engine, each on a host of its own.

use std::collections::BTreeMap;
use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use clap::Parser;
use http::Uri;
use http_body_util::BodyExt as _;
use kv::ids::DpRank;
use parking_lot::Mutex;
use router::router::Router;
use router::upstream::Pooled;
use side_channel::{SideChannel, Zmq};
use sidecar::engine_http::TcpEngine;
use sidecar::http::HttpSources;
use sidecar::lifecycle::Budgets;
use sidecar::peer_allow::PeerAllow;
use sidecar::pod::Parts;
use sidecar::run::{run_parts, this_build};
use sim::engine::Engine;
use sim::pod::Pod;
use sim::seams::Seams;
use telemetry::Observed;
use telemetry::log_filter::LogFilter;
use telemetry::trace::Spans;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use vllm_wire::headers::DP_RANK;
use vllm_wire::params::KvTransferParams;

use crate::evidence::{AnswerId, Evidence, Leg, virtual_request};
use crate::fabric;
use crate::hosts::{Host, Links};
use crate::net::{self, Dial, SideNet};
use crate::setup::Setup;

/// Engines and sidecars listen here.
pub const ENGINE: u16 = 8000;
pub const SIDECAR: u16 = 7700;
/// A sidecar's side channel of its first rank.
pub const SIDE_CHANNEL: u16 = 7800;
/// The router listens here.
pub const ROUTER: u16 = 10001;
/// Larger bodies are none of ours.
const BODY: usize = 1 << 20;

/// What all processes of a run share. Clones are the same.
#[derive(Clone, Debug)]
pub struct Pods {
    pub setup: Arc<Setup>,
    pub links: Links,
    pub fabric: fabric::World,
    pub evidence: Evidence,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    starts: BTreeMap<Host, u64>,
    /// How long the next start takes.
    delays: BTreeMap<Host, Duration>,
    stops: BTreeMap<Host, CancellationToken>,
    engines: BTreeMap<Host, Vec<Arc<Engine>>>,
}

#[derive(Debug, Parser)]
struct RouterLine {
    #[command(flatten)]
    args: router::config::Args,
}

#[derive(Debug, Parser)]
struct SidecarLine {
    #[command(flatten)]
    args: sidecar::config::Args,
}

impl Pods {
    pub fn new(seed: u64, control: Option<&str>, evidence: Evidence) -> Self {
        let links = Links::default();
        let setup = Setup::of(seed, control);
        evidence.lease(setup.lease());
        evidence.staging(setup.staging());
        Self {
            setup: Arc::new(setup),
            fabric: fabric::World::new(seed, links.clone(), evidence.clone()),
            links,
            evidence,
            running: Arc::default(),
        }
    }

    /// The next start of a host's process takes so long; its ports refuse meanwhile.
    pub fn delay(&self, host: Host, by: Duration) {
        self.running.lock().delays.insert(host, by);
    }

    /// Tells a process to end, as SIGTERM does.
    pub fn stop(&self, host: Host) {
        if let Some(stop) = self.running.lock().stops.get(&host) {
            stop.cancel();
        }
    }

    /// The ranks of an engine that runs.
    pub fn engines(&self, host: Host) -> Vec<Arc<Engine>> {
        self.running.lock().engines.get(&host).cloned().unwrap_or_default()
    }

    /// A host's process, from its start to its end.
    pub async fn run(self, host: Host) -> turmoil::Result {
        let (start, delay, stop) = {
            let mut running = self.running.lock();
            let start = running.starts.entry(host).or_default();
            *start += 1;
            let start = *start;
            let stop = CancellationToken::new();
            running.stops.insert(host, stop.clone());
            (start, running.delays.remove(&host).unwrap_or_default(), stop)
        };
        sleep(delay).await;
        self.evidence.note(|| format!("{host} starts ({start})"));
        match host {
            Host::Router => self.clone().router(start, stop).await?,
            Host::PrefillEngine(_) | Host::DecodeEngine(_) | Host::Reference => self.clone().engine(host, stop).await?,
            Host::PrefillSidecar(pod) => self.clone().sidecar(host, "prefill", Host::PrefillEngine(pod), stop).await?,
            Host::DecodeSidecar(pod) => self.clone().sidecar(host, "decode", Host::DecodeEngine(pod), stop).await?,
            Host::Client => {}
        }
        self.evidence.note(|| format!("{host} has ended"));
        Ok(())
    }

    fn side_channel(&self, from: Host) -> Arc<dyn SideChannel> {
        Arc::new(Zmq::over(SideNet { from, links: self.links.clone() }))
    }

    fn dial(&self, from: Host, within: Duration) -> Dial {
        Dial { from, links: self.links.clone(), within }
    }

    async fn engine(self, host: Host, stop: CancellationToken) -> turmoil::Result {
        let line = self.setup.engine(host);
        let config = sim::config::Args::try_parse_from(line.split_whitespace())?.pod()?;
        let seams = Seams { agents: Arc::new(self.fabric.agents(host)), side_channel: self.side_channel(host) };
        let pod = Pod::start_logged(config, &seams, self.evidence.request_log()).await?;
        self.running.lock().engines.insert(host, pod.engines().to_vec());
        let watcher = Watcher { evidence: self.evidence.clone(), host, panics: self.setup.panics };
        let app = pod.router().layer(from_fn_with_state(watcher, watch));
        let listener = net::listen(ENGINE).await?;
        tokio::select! {
            served = axum::serve(listener, app).into_future() => served?,
            // vLLM cuts what is under way.
            () = stop.cancelled() => {}
        }
        Ok(())
    }

    async fn sidecar(self, host: Host, role: &str, engine: Host, stop: CancellationToken) -> turmoil::Result {
        let line = self.setup.sidecar(host, role, engine);
        let mut settings = SidecarLine::try_parse_from(line.split_whitespace())?.args.settings()?;
        // Names of simulated hosts are not for the system to look up.
        settings.pod.peers = PeerAllow::Anybody;
        let parts = Parts {
            fabrics: Arc::new(self.fabric.agents(host)),
            engine: Arc::new(TcpEngine::over(self.dial(host, Duration::from_secs(3)), settings.pod.engine.clone())),
            side_channel: self.side_channel(host),
            receipts: self.evidence.receipts(engine),
            spans: Spans::default(),
            sources: Arc::new(HttpSources::over(self.dial(host, Duration::from_secs(2)), None)),
        };
        let budgets = Budgets { drain: Duration::from_secs(3), ..Budgets::default() };
        let listener = net::listen(SIDECAR).await?;
        run_parts(settings, listener, parts, (this_build("sim"), log_filter()), budgets, stop).await?;
        Ok(())
    }

    async fn router(self, start: u64, stop: CancellationToken) -> turmoil::Result {
        let line = self.setup.router();
        let config = RouterLine::try_parse_from(line.split_whitespace())?.args.check()?;
        let upstream = Arc::new(Pooled::over(self.dial(Host::Router, config.deadlines.connect)));
        let observed = Observed { log_filter: log_filter(), spans: Spans::default() };
        let parts = router::router::Parts { upstream, git_sha: "sim", id_prefix: format!("r{start}"), observed };
        let router = Router::start(config, parts);
        let ended = router.serve(net::listen(ROUTER).await?, stop).await;
        self.evidence.note(|| format!("router: {ended:?}"));
        Ok(())
    }
}

fn log_filter() -> LogFilter {
    LogFilter::new("info", |_| Ok(()))
}

/// Stands before an engine and sees what it is asked and what it answers.
#[derive(Clone, Debug)]
struct Watcher {
    evidence: Evidence,
    host: Host,
    panics: bool,
}

async fn watch(State(watcher): State<Watcher>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if !path.ends_with("completions") || watcher.host == Host::Reference {
        return next.run(request).await;
    }
    assert!(!watcher.panics, "a control");
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY).await else { return next.run(Request::from_parts(head, Body::empty())).await };
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let tag = json.get("user").and_then(|tag| tag.as_str());
    if watcher.host.is_prefill_engine() {
        if let Some(tag) = tag {
            watcher.evidence.reached(watcher.host, Leg::Prefill, tag, &body);
        }
        let answer = next.run(Request::from_parts(head, Body::from(body))).await;
        return watcher.prefilled(tag, answer).await;
    }
    let rank = head.headers.get(DP_RANK).and_then(|rank| rank.to_str().ok()).and_then(|rank| rank.parse().ok());
    let answering = watcher.decode(DpRank(rank.unwrap_or(u16::MAX)), tag, &json, &body);
    let answer = next.run(Request::from_parts(head, Body::from(body))).await;
    let Some(answering) = answering else { return answer };
    let evidence = watcher.evidence;
    answer.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(data) = frame.data_ref() {
                evidence.said(&answering, data);
            }
            frame
        }))
    })
}

impl Watcher {
    async fn prefilled(&self, tag: Option<&str>, answer: Response) -> Response {
        let (head, body) = answer.into_parts();
        let body = to_bytes(body, BODY).await.unwrap_or_default();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        if let Some(params) = json.get("kv_transfer_params").filter(|params| params.is_object()) {
            self.evidence.prefilled(self.host, tag, params);
        }
        Response::from_parts(head, Body::from(body))
    }

    /// A decode engine is asked; the answer that it is about to give to one of ours.
    fn decode(&self, rank: DpRank, tag: Option<&str>, json: &serde_json::Value, asked: &[u8]) -> Option<AnswerId> {
        let params = json.get("kv_transfer_params").and_then(|params| KvTransferParams::parse(params).ok());
        let Some(params) = params.filter(|params| params.do_remote_prefill) else {
            if let Some(tag) = tag {
                self.evidence.alone(self.host, tag);
            }
            return None;
        };
        self.evidence.decode(self.host, rank, tag, &params);
        self.evidence.reached(self.host, Leg::Decode, tag?, asked);
        Some(self.evidence.answer(tag?, virtual_request(&params)))
    }
}

/// Where a host's port is.
pub fn at(host: Host, port: u16, path: &str) -> Uri {
    let uri = Uri::builder().scheme("http").authority(format!("{host}:{port}")).path_and_query(path);
    uri.build().unwrap_or_default()
}

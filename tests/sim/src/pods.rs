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

use crate::evidence::Evidence;
use crate::fabric;
use crate::hosts::{Host, Links};
use crate::net::{self, Dial, SideNet};
use crate::setup::Setup;

/// Engines and sidecars listen here.
pub const ENGINE: u16 = 8000;
pub const SIDECAR: u16 = 7700;
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
        Self {
            setup: Arc::new(Setup::of(seed, control)),
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
        let pod = Pod::start(config, &seams).await?;
        self.running.lock().engines.insert(host, pod.engines().to_vec());
        let app = pod.router().layer(from_fn_with_state((self.evidence.clone(), host), watch));
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
async fn watch(State((evidence, host)): State<(Evidence, Host)>, request: Request, next: Next) -> Response {
    if !request.uri().path().ends_with("completions") {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY).await else { return next.run(Request::from_parts(head, Body::empty())).await };
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let params = json.get("kv_transfer_params").and_then(|params| KvTransferParams::parse(params).ok());
    if let Some(params) = params.filter(|params| params.do_remote_prefill) {
        let rank = head.headers.get(DP_RANK).and_then(|rank| rank.to_str().ok()).and_then(|rank| rank.parse().ok());
        evidence.decode(host, DpRank(rank.unwrap_or(u16::MAX)), &params);
    }
    let answer = next.run(Request::from_parts(head, Body::from(body))).await;
    if !host.is_prefill_engine() {
        return answer;
    }
    let (head, body) = answer.into_parts();
    let body = to_bytes(body, BODY).await.unwrap_or_default();
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    if let Some(params) = json.get("kv_transfer_params").filter(|params| params.is_object()) {
        evidence.prefilled(host, params);
    }
    Response::from_parts(head, Body::from(body))
}

/// Where a host's port is.
pub fn at(host: Host, port: u16, path: &str) -> Uri {
    let uri = Uri::builder().scheme("http").authority(format!("{host}:{port}")).path_and_query(path);
    uri.build().unwrap_or_default()
}

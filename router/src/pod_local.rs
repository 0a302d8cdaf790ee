//! The router in a decode pod: who prefills is said by a gateway, request by request.
//!
//! A header that chooses where this process connects to, and whom it shows the sidecars' token, is believed only as far as the
//! operator allows it: pods on the board (`--prefill`, discovery) or addresses of `--prefill-allow`. The latter are put on the board
//! when they are first named and taken off when nobody has named them for a while.

mod header;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::uri::Authority;
use http::{HeaderMap, StatusCode};
use kv::ids::{DpRank, LocalRank};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::config::pod_local::PodLocal;
use crate::discover::{Hands, at};
use crate::error::ApiError;
use crate::targets::{AlreadyThere, Board, Pod, PodId, PodSpec, Rank, Side};

/// A pod that is named for the first time has this long to be heard of before the request goes without it.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Pods that are kept only because they were named.
const MOST_NAMED: usize = 256;
/// One that nobody has named for this long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Between two lines of the log about names that are refused.
const COMPLAIN_EVERY: Duration = Duration::from_secs(1);

/// Who may prefill a request.
#[derive(Clone, Debug, Default)]
pub(crate) enum Prefillers {
    /// Any pod of the board: this router picks.
    #[default]
    Any,
    /// Nobody: the gateway wants it done by this pod alone.
    Nobody,
    /// These, by their index, the first rather than the second.
    These(Arc<[usize]>),
}

/// What a gateway has picked.
#[derive(Clone, Debug)]
pub(crate) struct Picked {
    pub(crate) prefillers: Prefillers,
    /// A rank of this pod.
    pub(crate) decode: Option<DpRank>,
}

/// Headers seen, by what became of them.
pub(crate) type Headers = Family<HeaderLabels, Counter<u64, AtomicU64>>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HeaderLabels {
    outcome: &'static str,
}

/// Whom a gateway's headers name for prefill, if they can be read; all of them are taken out.
pub(crate) fn prefillers(headers: &mut HeaderMap) -> Option<Vec<Authority>> {
    header::take(headers).ok().map(|said| said.prefillers)
}

/// Takes out what a gateway has said of a request that this pod serves by itself.
pub(crate) fn strip(headers: &mut HeaderMap) {
    drop(header::take(headers));
}

/// Follows what a gateway says.
#[derive(Debug)]
pub(crate) struct Gateway {
    config: PodLocal,
    /// This router's own port, rank 0's by llm-d's convention.
    port: u16,
    ranks: u16,
    hands: Hands,
    /// Pods that are on the board only because they were named, and when last.
    named: Mutex<BTreeMap<usize, Instant>>,
    headers: Headers,
    /// When last a name was refused in the log.
    complained: Mutex<Option<Instant>>,
}

impl Gateway {
    pub(crate) fn new(config: PodLocal, port: u16, ranks: u16, hands: Hands) -> Arc<Self> {
        let (named, headers, complained) = (Mutex::default(), Headers::default(), Mutex::default());
        let gateway = Arc::new(Self { config, port, ranks, hands, named, headers, complained });
        let (forgetting, stop) = (Arc::clone(&gateway), gateway.hands.stop.clone());
        gateway.hands.watchers.tasks.spawn(async move {
            loop {
                tokio::select! { () = stop.cancelled() => return, () = sleep(FORGET_EVERY) => forgetting.forget(Instant::now()) }
            }
        });
        gateway
    }

    pub(crate) fn headers(&self) -> Headers {
        self.headers.clone()
    }

    /// Reads what the gateway has picked and takes it out of the headers. Waits a moment for a pod that is new.
    ///
    /// # Errors
    /// 400 for what cannot be read, 403 when nobody who is named is allowed.
    pub(crate) async fn picked(&self, headers: &mut HeaderMap) -> Result<Picked, ApiError> {
        let said = header::take(headers).map_err(|error| {
            self.count("invalid");
            ApiError::client(StatusCode::BAD_REQUEST, "prefiller_invalid", error.to_string())
        })?;
        let decode = said.decode_port.map(|port| self.rank_of(port)).transpose()?;
        if said.prefillers.is_empty() {
            self.count("absent");
            return Ok(Picked { prefillers: Prefillers::Nobody, decode });
        }
        let pods: Vec<Arc<Pod>> = said.prefillers.iter().filter_map(|engine| self.admitted(engine)).collect();
        if pods.is_empty() {
            self.count("forbidden");
            let words = "the prefiller is none that this pod may ask: see --prefill-allow";
            return Err(ApiError::client(StatusCode::FORBIDDEN, "prefiller_forbidden", words));
        }
        self.count("taken");
        heard(&pods, Instant::now()).await;
        Ok(Picked { prefillers: Prefillers::These(pods.iter().map(|pod| pod.id.index).collect()), decode })
    }

    fn count(&self, outcome: &'static str) {
        self.headers.get_or_create(&HeaderLabels { outcome }).inc();
    }

    /// The pod of an engine that may be asked.
    fn admitted(&self, engine: &Authority) -> Option<Arc<Pod>> {
        let board = &self.hands.board;
        let now = Instant::now();
        if let Some(pod) = on(board, engine) {
            if let Some(last) = self.named.lock().get_mut(&pod.id.index) {
                *last = now;
            }
            return Some(pod);
        }
        let address: Option<SocketAddr> = engine.as_str().parse().ok();
        let Some(address) = address.filter(|address| self.config.allow.iter().any(|allowed| allowed.covers(*address)))
        else {
            self.complain(engine, now);
            return None;
        };
        let mut named = self.named.lock();
        if named.len() >= MOST_NAMED && !self.make_room(&mut named) {
            warn!(%engine, most = MOST_NAMED, "a gateway names more prefillers than are kept");
            return None;
        }
        let sidecar = self.hands.sidecars.and_then(|scheme| at(address.ip(), (scheme, self.config.sidecar_port)));
        let url = at(address.ip(), (self.config.engine_scheme, address.port()))?;
        match board.add(PodSpec { side: Side::Prefill, engine: url, sidecar, ranks: self.ranks }) {
            Ok(pod) => {
                info!(pod = %pod.id, %engine, "a gateway names a prefiller");
                named.insert(pod.id.index, now);
                self.hands.watchers.start(Arc::clone(&pod));
                Some(pod)
            }
            // Another request was quicker.
            Err(AlreadyThere(_)) => on(board, engine),
        }
    }

    /// Whoever can reach the port can have this said, so it is said once a second; the counter has all.
    fn complain(&self, engine: &Authority, now: Instant) {
        let mut last = self.complained.lock();
        if last.is_none_or(|last| now.saturating_duration_since(last) >= COMPLAIN_EVERY) {
            *last = Some(now);
            warn!(%engine, "a gateway names a prefiller that is not allowed");
        }
    }

    /// Takes the pod off that was named the longest ago and has nothing to do.
    fn make_room(&self, named: &mut BTreeMap<usize, Instant>) -> bool {
        let fleet = self.hands.board.fleet();
        let idle =
            |index: &usize| fleet.side(Side::Prefill).iter().all(|pod| pod.id.index != *index || pod.in_flight() == 0);
        let oldest =
            named.iter().filter(|(index, _)| idle(index)).min_by_key(|(_, last)| **last).map(|(index, _)| *index);
        oldest.is_some_and(|index| {
            self.remove(index);
            named.remove(&index).is_some()
        })
    }

    /// Takes pods off the board that nobody has named for long.
    fn forget(&self, now: Instant) {
        let fleet = self.hands.board.fleet();
        let busy =
            |index: usize| fleet.side(Side::Prefill).iter().any(|pod| pod.id.index == index && pod.in_flight() > 0);
        self.named.lock().retain(|index, last| {
            let stays = busy(*index) || now.saturating_duration_since(*last) < FORGET_AFTER;
            if !stays {
                self.remove(*index);
            }
            stays
        });
    }

    fn remove(&self, index: usize) {
        if let Some(pod) = self.hands.board.remove(PodId { side: Side::Prefill, index }) {
            info!(pod = %pod.id, engine = %pod.engine, "a prefiller that is not named any more is forgotten");
        }
    }

    /// The rank that a port stands for: this router's own is rank 0's.
    fn rank_of(&self, port: u16) -> Result<DpRank, ApiError> {
        // With any free port, the router does not know which one it got.
        let local = port.checked_sub(self.port).filter(|_| self.port > 0).map(LocalRank);
        let fleet = self.hands.board.fleet();
        let rank = local.and_then(|local| fleet.side(Side::Decode).first()?.ranks.get(usize::from(local.0)));
        rank.map(Rank::number).ok_or_else(|| {
            let words = format!("x-data-parallel-host-port: port {port} stands for no DP rank of this pod");
            ApiError::client(StatusCode::BAD_REQUEST, "rank_unknown", words)
        })
    }
}

/// Whichever its scheme.
fn on(board: &Board, engine: &Authority) -> Option<Arc<Pod>> {
    board.fleet().side(Side::Prefill).iter().find(|pod| pod.engine.authority() == Some(engine)).cloned()
}

/// Until one of the pods is heard of, no longer than a new pod may take.
async fn heard(pods: &[Arc<Pod>], now: Instant) {
    let ready = || pods.iter().any(|pod| pod.ranks.iter().any(Rank::is_ready));
    let until = pods.iter().map(|pod| pod.added + HEARD_WITHIN).max().unwrap_or(now);
    while !ready() && Instant::now() < until {
        sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests;

//! Keeps the board as discovery sees the world: pods that appear are added and watched, pods that are told to end get no new work, pods
//! that have gone are removed while what is under way there goes on to its end.

mod figures;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::discovery::{Found, Publisher, Seen, Tally, dns, kubernetes};
use http::Uri;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::config::discovery::{Discovery, Selected};
use crate::config::{PodUrl, Scheme};
use crate::targets::{AlreadyThere, Board, Pod, PodSpec, Side};
use crate::watch::Watchers;

/// One place where pods are found, and how they are talked to.
#[derive(Clone, Debug)]
struct Source {
    side: Side,
    /// Who is asked: `kubernetes` or `dns`.
    by: &'static str,
    /// What is asked for, for operators.
    what: String,
    engine: (Scheme, u16),
    /// `None` with the direct gate.
    sidecar: Option<(Scheme, u16)>,
    ranks: u16,
}

/// One source that is followed.
#[derive(Clone, Debug)]
struct Followed {
    source: Source,
    seen: watch::Receiver<Seen>,
    tally: Arc<Tally>,
}

/// What every source has seen, for `/readyz` and metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources(Vec<Followed>);

/// What discovery works with.
#[derive(Clone, Debug)]
pub(crate) struct Hands {
    pub(crate) board: Arc<Board>,
    pub(crate) watchers: Watchers,
    pub(crate) stop: CancellationToken,
    /// How sidecars are reached that no URL names; `None` when they are not asked.
    pub(crate) sidecars: Option<Scheme>,
}

impl Sources {
    /// Starts to follow everything that is configured.
    pub(crate) fn start(discovery: &Discovery, named: &[(Side, &[PodUrl], u16)], hands: &Hands) -> Self {
        let mut sources = Self::default();
        match discovery {
            Discovery::Off => {}
            Discovery::Dns { every } => {
                for (side, urls, ranks) in named {
                    for url in *urls {
                        let Some((source, host)) = of_name(*side, url, *ranks, hands.sidecars.is_some()) else {
                            continue;
                        };
                        let told = sources.follow(source, hands);
                        hands.watchers.tasks.spawn(dns::follow(host, *every, told, hands.stop.clone()));
                    }
                }
            }
            Discovery::Kubernetes(selected) => {
                for (side, _, ranks) in named {
                    let Some((source, wanted)) = of_labels(*side, selected, *ranks, hands.sidecars) else { continue };
                    let told = sources.follow(source, hands);
                    let api = selected.api.clone();
                    hands.watchers.tasks.spawn(kubernetes::follow(api, wanted, told, hands.stop.clone()));
                }
            }
        }
        sources
    }

    fn follow(&mut self, source: Source, hands: &Hands) -> Publisher {
        let (told, seen, tally) = Publisher::new(Instant::now());
        self.0.push(Followed { source: source.clone(), seen: seen.clone(), tally });
        hands.watchers.tasks.spawn(keep(source, seen, hands.clone()));
        told
    }

    /// For operators: what is followed, how many pods there are, and what is wrong.
    pub(crate) fn shown(&self) -> Vec<Value> {
        let shown = |Followed { source, seen, .. }: &Followed| {
            let seen = seen.borrow();
            json!({ "side": source.side.as_str(), "of": source.what, "pods": seen.pods.len(), "heard": seen.heard, "trouble": seen.trouble })
        };
        self.0.iter().map(shown).collect()
    }
}

fn of_name(side: Side, url: &PodUrl, ranks: u16, gated: bool) -> Option<(Source, String)> {
    let host = url.engine.host()?.trim_matches(['[', ']']).to_owned();
    let (engine, sidecar) = (port(&url.engine), gated.then(|| port(&url.sidecar)));
    Some((Source { side, by: "dns", what: host.clone(), engine, sidecar, ranks }, host))
}

fn port(url: &Uri) -> (Scheme, u16) {
    let (scheme, usual) = if url.scheme_str() == Some("https") { (Scheme::Https, 443) } else { (Scheme::Http, 80) };
    (scheme, url.port_u16().unwrap_or(usual))
}

/// `None` for a side that is not looked for.
fn of_labels(
    side: Side,
    selected: &Selected,
    ranks: u16,
    sidecars: Option<Scheme>,
) -> Option<(Source, kubernetes::Wanted)> {
    let (wanted, engine_port) = match side {
        Side::Prefill => (Some(&selected.prefill), selected.prefill_port),
        Side::Decode => (selected.decode.as_ref(), selected.decode_port),
    };
    let wanted = wanted?;
    let what = format!("{} in {}", wanted.selector, wanted.namespace);
    let sidecar = sidecars.map(|scheme| (scheme, selected.sidecar_port));
    let engine = (selected.engine_scheme, engine_port);
    Some((Source { side, by: "kubernetes", what, engine, sidecar, ranks }, wanted.clone()))
}

async fn keep(source: Source, mut seen: watch::Receiver<Seen>, hands: Hands) {
    let mut known = BTreeMap::new();
    loop {
        let pods = seen.borrow_and_update().pods.clone();
        reconcile(&source, &pods, &mut known, &hands);
        tokio::select! {
            () = hands.stop.cancelled() => return,
            changed = seen.changed() => if changed.is_err() { return },
        }
    }
}

/// Makes the board so. `known` are the pods that this source has added; others are the operators' own.
fn reconcile(source: &Source, pods: &[Found], known: &mut BTreeMap<String, Arc<Pod>>, hands: &Hands) {
    // First those that have gone, or are at another address since their node has restarted: a new pod may have got the address of one.
    known.retain(|key, pod| {
        let is_it = |found: &Found| found.key == *key && at(found.address, source.engine).as_ref() == Some(&pod.engine);
        let there = pods.iter().any(is_it);
        if !there && hands.board.remove(pod.id).is_some() {
            info!(pod = %pod.id, engine = %pod.engine, in_flight = pod.in_flight(), "pod has gone");
        }
        there
    });
    for found in pods {
        if let Some(pod) = known.get(&found.key) {
            if found.leaving && !pod.draining.swap(true, Ordering::Relaxed) {
                info!(pod = %pod.id, "pod is told to end: it gets no new work");
            }
            continue;
        }
        if found.leaving {
            // It would be gone before it is ready.
            continue;
        }
        let Some(engine) = at(found.address, source.engine) else { continue };
        let sidecar = source.sidecar.and_then(|port| at(found.address, port));
        match hands.board.add(PodSpec { side: source.side, engine, sidecar, ranks: source.ranks }) {
            Ok(pod) => {
                info!(pod = %pod.id, engine = %pod.engine, "pod is found");
                hands.watchers.start(Arc::clone(&pod));
                known.insert(found.key.clone(), pod);
            }
            Err(AlreadyThere(pod)) => debug!(%pod, address = %found.address, "a pod that is found is known already"),
        }
    }
}

/// A server of an address.
pub(crate) fn at(address: IpAddr, (scheme, port): (Scheme, u16)) -> Option<Uri> {
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    format!("{}://{host}:{port}/", scheme.as_str()).parse().ok()
}

#[cfg(test)]
mod tests;

//! The client's host: the load, then whether everything is well again and nothing is left behind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Uri;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use crate::evidence::Mark;
use crate::hosts::Host;
use crate::junk;
use crate::plan;
use crate::pods::{ENGINE, Pods, ROUTER, SIDECAR, at};
use crate::run::{OVER, Shared};
use crate::workload::{Ask, Ended, asks, get};

/// All ranks are ready this long after the start, or after the last fault.
const READY_WITHIN: Duration = Duration::from_secs(40);
/// After the last request that could use them, slots and pins are free; an engine gives a read that hangs 120 s.
const FREE_WITHIN: Duration = Duration::from_secs(140);
/// After the last fault's end.
const A_MOMENT: Duration = Duration::from_millis(500);
/// Requests that show that everything works again.
const RECOVERY: usize = 8;

const SIDECARS: [Host; 4] =
    [Host::PrefillSidecar(0), Host::PrefillSidecar(1), Host::DecodeSidecar(0), Host::DecodeSidecar(1)];
const ENGINES: [Host; 4] =
    [Host::PrefillEngine(0), Host::PrefillEngine(1), Host::DecodeEngine(0), Host::DecodeEngine(1)];

struct Client {
    pods: Pods,
    shared: Shared,
    tasks: TaskTracker,
    router: Uri,
}

/// The client's software.
pub async fn run(seed: u64, pods: Pods, shared: Shared) -> turmoil::Result {
    let router = at(Host::Router, ROUTER, "/");
    let client = Arc::new(Client { pods, shared, tasks: TaskTracker::new(), router });
    let asks = asks(seed, OVER);
    let expected = client.expected(&asks).await;
    if !client.ready("at the start").await {
        return Ok(());
    }
    client.shared.load_begins();
    let began = Instant::now();
    let load = asks.into_iter().map(|ask| {
        let (client, expected) = (Arc::clone(&client), expected.get(&ask.tag).cloned());
        client.tasks.clone().spawn(async move {
            sleep_until(began + ask.at).await;
            client.one(&ask, expected.as_deref()).await
        })
    });
    let junk = junk::all(seed, OVER).into_iter().map(|junk| {
        let client = Arc::clone(&client);
        client.tasks.clone().spawn(async move {
            sleep_until(began + junk.at).await;
            client.pods.evidence.fault(Mark::Junk, || junk.to_string());
            if let Err(how) = junk.send(&client.tasks).await {
                client.pods.evidence.broken("S", how);
            }
        })
    });
    let junk = junk.collect::<Vec<_>>();
    drop(join_all(load.collect::<Vec<_>>()).await);
    let last = plan::events(seed, OVER).iter().map(|event| event.at + event.lasts).max();
    sleep_until(began + last.unwrap_or_default() + A_MOMENT).await;
    if client.ready("after the faults").await {
        client.recovers(seed).await;
    }
    drop(join_all(junk).await);
    client.leaks().await;
    Ok(())
}

impl Client {
    async fn expected(&self, asks: &[Ask]) -> BTreeMap<String, String> {
        let reference = at(Host::Reference, ENGINE, "/");
        // It starts in the same moment.
        sleep(Duration::from_millis(100)).await;
        let texts = join_all(asks.iter().map(|ask| ask.expected(&self.tasks, &reference))).await;
        let known = asks.iter().zip(texts).filter_map(|(ask, text)| Some((ask.tag.clone(), text?)));
        known.collect()
    }

    async fn one(&self, ask: &Ask, expected: Option<&str>) -> Ended {
        let evidence = &self.pods.evidence;
        evidence.asked(&ask.tag, ask.path(), ask.body.as_bytes());
        let Some(expected) = expected else {
            evidence.broken("reference", format!("nobody knows the answer to request {}", ask.tag));
            return Ended::Hung;
        };
        let (ended, heard) = ask.ended(&self.tasks, &self.router, expected).await;
        if let Some((bytes, whole)) = heard.of_engine(ask.stream) {
            evidence.received(&ask.tag, bytes, whole && ended == Ended::Right);
        }
        evidence.ended(&ask.tag, &ended);
        self.shared.ended(ended.clone());
        ended
    }

    /// Waits until every rank says that it is ready.
    async fn ready(&self, when: &str) -> bool {
        let until = Instant::now() + READY_WITHIN;
        let mut not = Vec::new();
        while Instant::now() < until {
            not.clear();
            for sidecar in SIDECARS {
                let page = get(&self.tasks, &at(sidecar, SIDECAR, "/"), "/v1/ranks").await.unwrap_or_default();
                let ranks = page["ranks"].as_array().cloned().unwrap_or_default();
                let ready = ranks.iter().filter(|rank| rank["state"] == "ready").count();
                if ready == 0 || ready < ranks.len() {
                    not.push(format!(
                        "{sidecar}: {} {}",
                        ranks.len(),
                        ranks.first().map(|rank| &rank["reasons"]).cloned().unwrap_or_default()
                    ));
                }
            }
            if not.is_empty() {
                self.pods.evidence.note(|| format!("all ranks are ready {when}"));
                return true;
            }
            sleep(Duration::from_millis(200)).await;
        }
        self.pods.evidence.broken("liveness", format!("not ready {when}: {not:?}"));
        false
    }

    /// Everything that can be right is, soon after the last fault.
    async fn recovers(&self, seed: u64) {
        let until = Instant::now() + READY_WITHIN;
        for round in 0_u64.. {
            let asks: Vec<Ask> = asks(seed ^ (round + 1) << 32, Duration::ZERO).into_iter().take(RECOVERY).collect();
            let asks: Vec<Ask> = asks.into_iter().map(|ask| Ask { leaves: None, ..ask }).collect();
            let expected = self.expected(&asks).await;
            let ended = asks.iter().map(|ask| self.one(ask, expected.get(&ask.tag).map(String::as_str)));
            if join_all(ended).await.iter().all(|ended| *ended == Ended::Right) {
                self.pods.evidence.note(|| "everything works again".to_owned());
                return;
            }
            if Instant::now() >= until {
                self.pods.evidence.broken("liveness", "requests still fail after the faults");
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Everything that was held is given back.
    async fn leaks(&self) {
        let until = Instant::now() + FREE_WITHIN;
        loop {
            let held = self.held().await;
            if held.is_empty() {
                self.pods.evidence.note(|| "nothing is held any more".to_owned());
                return;
            }
            if Instant::now() >= until {
                self.shared.leaked(held.iter().map(|(_, count)| count).sum());
                let text: Vec<String> = held.iter().map(|(what, count)| format!("{what}: {count}")).collect();
                self.pods.evidence.broken("leak", text.join(", "));
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    async fn held(&self) -> Vec<(String, u64)> {
        let mut held = Vec::new();
        for sidecar in SIDECARS {
            let page = get(&self.tasks, &at(sidecar, SIDECAR, "/"), "/v1/ranks").await.unwrap_or_default();
            let ranks = page["ranks"].as_array().cloned().unwrap_or_default();
            let sum = |what: fn(&serde_json::Value) -> u64| ranks.iter().map(what).sum::<u64>();
            held.push((format!("{sidecar} staging"), sum(|rank| rank["staging"]["used_blocks"].as_u64().unwrap_or(1))));
            held.push((format!("{sidecar} in flight"), sum(|rank| rank["in_flight"].as_u64().unwrap_or(1))));
            held.push((format!("{sidecar} handles"), sum(|rank| rank["handles"].as_u64().unwrap_or(1))));
        }
        for host in ENGINES {
            for engine in self.pods.engines(host) {
                let stats = &engine.stats;
                let used = stats.used_blocks.get().saturating_sub(stats.quarantined_blocks.get());
                held.push((format!("{host}@{} blocks", engine.rank), used));
                held.push((format!("{host}@{} requests", engine.rank), stats.running.get() + stats.waiting.get()));
            }
        }
        held.retain(|(_, count)| *count > 0);
        held
    }
}

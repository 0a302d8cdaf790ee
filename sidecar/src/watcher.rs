//! What is known of the pod's engine: one task reads its pages, each rank asks its side channel once per engine start.
//!
//! A wrong or needless question can kill vLLM's listener, so nothing is asked before `/version` is one that we speak, only `(0, tp)` of the
//! configured shards is asked for, and never on a timer: only after the pages show that the engine (re)started, and again
//! after an answer failed to come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv::readiness::VersionFact;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vllm_wire::metrics::{self, RankLoad};
use vllm_wire::versions::{self, Version};

use crate::engine_http::{EngineHttp, GetError, Page};

/// How often the pages are read.
const EVERY: Duration = Duration::from_secs(1);
/// How long one page may take.
const PAGE_WITHIN: Duration = Duration::from_secs(3);

/// What the pages say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct EngineView {
    /// Whether the last health check succeeded; `None` before the first.
    pub healthy: Option<bool>,
    /// Health checks that failed in a row.
    pub failures: u32,
    /// The version, as readiness sees it.
    pub version: VersionFact,
    /// How it is spoken to, if it is a supported one.
    pub spoken: Option<&'static Version>,
    /// The version's own words.
    pub version_text: Option<String>,
    /// Grows whenever the engine may have restarted; 0 before it was first healthy.
    pub incarnation: u64,
    /// The longest sequence that the engine takes, in tokens.
    pub max_model_len: Option<u64>,
    /// Load per `engine` label.
    pub loads: BTreeMap<u16, RankLoad>,
}

/// The engine's load as it was seen last: for those who must not decide by an older look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Looked {
    /// Grows with every look.
    pub number: u64,
    /// Load per `engine` label; nothing when the engine did not say.
    pub loads: Option<BTreeMap<u16, RankLoad>>,
}

/// What one look at the engine brought.
#[derive(Debug)]
struct Look {
    healthy: bool,
    version: Option<String>,
    max_model_len: Option<u64>,
    metrics: Option<metrics::Metrics>,
}

/// Reads the pages until `stop`.
///
/// # Cancel safety
/// Dropping it ends the watch; the view stays as it was.
pub(crate) async fn watch_engine(
    engine: Arc<dyn EngineHttp>,
    (view, looked): (watch::Sender<Arc<EngineView>>, watch::Sender<Looked>),
    stop: CancellationToken,
) {
    let mut history = History::default();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let version_known = view.borrow().version != VersionFact::Unknown;
        let look = tokio::select! {
            () = stop.cancelled() => return,
            look = look(&*engine, version_known) => look,
        };
        let loads = look.metrics.as_ref().map(|metrics| metrics.ranks.clone());
        looked.send_modify(|looked| *looked = Looked { number: looked.number.wrapping_add(1), loads });
        view.send_if_modified(|view| {
            let next = history.see(view, look);
            let changed = next != **view;
            if changed {
                log_change(view, &next);
                *view = Arc::new(next);
            }
            changed
        });
    }
}

async fn look(engine: &dyn EngineHttp, version_known: bool) -> Look {
    let health = engine.get("/health", PAGE_WITHIN).await;
    if !matches!(&health, Ok(page) if page.status.is_success()) {
        return Look { healthy: false, version: None, max_model_len: None, metrics: None };
    }
    let (mut version, mut max_model_len) = (None, None);
    if !version_known {
        version = version_of(engine.get("/version", PAGE_WITHIN).await);
        max_model_len = max_model_len_of(engine.get("/v1/models", PAGE_WITHIN).await);
    }
    let metrics = text_of(engine.get("/metrics", PAGE_WITHIN).await).map(|text| metrics::parse(&text));
    Look { healthy: true, version, max_model_len, metrics }
}

fn text_of(page: Result<Page, GetError>) -> Option<String> {
    let page = page.ok().filter(|page| page.status.is_success())?;
    String::from_utf8(page.body.to_vec()).ok()
}

fn version_of(page: Result<Page, GetError>) -> Option<String> {
    let text = text_of(page)?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    json.get("version")?.as_str().map(str::to_owned)
}

fn max_model_len_of(page: Result<Page, GetError>) -> Option<u64> {
    let json: serde_json::Value = serde_json::from_str(&text_of(page)?).ok()?;
    let models = json.get("data")?.as_array()?;
    models.iter().filter_map(|model| model.get("max_model_len")?.as_u64()).max()
}

fn log_change(old: &EngineView, new: &EngineView) {
    if old.healthy != new.healthy {
        tracing::info!(healthy = new.healthy, failures = new.failures, "engine health changed");
    }
    if old.incarnation != new.incarnation && old.incarnation > 0 {
        tracing::info!(incarnation = new.incarnation, "engine may have restarted");
    }
    if old.version != new.version && new.version_text.is_some() {
        tracing::info!(version = new.version_text, "engine version known");
    }
}

/// What earlier looks showed, to tell a restart by.
#[derive(Debug, Default)]
struct History {
    process_start: Option<f64>,
    totals: BTreeMap<u16, u64>,
}

impl History {
    /// The view after a look.
    fn see(&mut self, old: &EngineView, look: Look) -> EngineView {
        let mut next = old.clone();
        if !look.healthy {
            next.healthy = Some(false);
            next.failures = old.failures.saturating_add(1);
            return next;
        }
        next.healthy = Some(true);
        next.failures = 0;
        let restarted = look.metrics.as_ref().is_some_and(|metrics| self.shows_restart(metrics));
        if old.healthy != Some(true) || restarted {
            next.incarnation = old.incarnation.saturating_add(1);
            // The version is asked for again: an engine is usually restarted to change it.
            next.version = VersionFact::Unknown;
            next.spoken = None;
            next.version_text = None;
        }
        if let Some(version) = look.version {
            (next.version, next.spoken) = match versions::supported(&version) {
                Ok(known) => (VersionFact::Supported, Some(known)),
                Err(unsupported) => (VersionFact::Unsupported(unsupported.to_string()), None),
            };
            next.version_text = Some(version);
            next.max_model_len = look.max_model_len;
        }
        if let Some(metrics) = look.metrics {
            next.loads = metrics.ranks;
        }
        next
    }

    /// Another process start, or a counter that fell.
    fn shows_restart(&mut self, metrics: &metrics::Metrics) -> bool {
        let start = metrics.process_start_time_seconds;
        let other_start = matches!((self.process_start, start), (Some(old), Some(new)) if (old - new).abs() > 0.001);
        self.process_start = start.or(self.process_start);
        let mut fell = false;
        for (rank, load) in &metrics.ranks {
            let total = total(load);
            if let Some(old) = self.totals.insert(*rank, total) {
                fell |= total < old;
            }
        }
        other_start || fell
    }
}

/// All counters of a rank together: as each of them only grows, a smaller sum is another process.
fn total(load: &RankLoad) -> u64 {
    let counters = [load.nixl_failed, load.nixl_failed_notifications, load.nixl_expired, load.nixl_late_notifications];
    counters.into_iter().fold(0, u64::saturating_add)
}

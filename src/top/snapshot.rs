//! What a sidecar or a router says at one moment. Its answers are kept as they are: `top` shows what there is, whatever the build.

use http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use crate::ask::{AskError, Asker};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Sidecar,
    Router,
}

/// A page that was not to be had; the rest is shown without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Missing {
    pub(super) path: &'static str,
    pub(super) why: String,
}

/// Everything that one screen shows. What the other kind would say is empty.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Snapshot {
    pub(super) url: String,
    pub(super) kind: Kind,
    pub(super) version: Value,
    /// A sidecar's `/v1/ranks`, a router's targets.
    pub(super) ranks: Vec<Value>,
    /// Transfers of a sidecar, requests of a router; the newest first.
    pub(super) recent: Vec<Value>,
    /// The same, the slowest first.
    pub(super) slowest: Vec<Value>,
    /// A sidecar's percentiles per stage over the last minute.
    pub(super) latency: Value,
    /// A sidecar's remote engines.
    pub(super) peers: Vec<Value>,
    pub(super) missing: Vec<Missing>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    /// No answer at all.
    #[error("ask {url} who it is")]
    Unreachable {
        url: String,
        #[source]
        source: AskError,
    },
    /// Some other program.
    #[error("{url} answers {status} at /readyz, and neither like a kvgate sidecar nor like a kvgate router")]
    Stranger { url: String, status: u16 },
    /// A sidecar that says nothing without its token.
    #[error("{url} wants a token: give --token-file FILE")]
    Token { url: String },
}

impl Snapshot {
    /// Asks for everything, at most `limit` transfers or requests of each order.
    ///
    /// # Errors
    /// When it is not reachable, or no kvgate. A page that is missing is no error.
    pub(super) async fn take(asker: &Asker, url: &str, limit: usize) -> Result<Self, SnapshotError> {
        let url = url.trim_end_matches('/').to_owned();
        let unreachable = |source| SnapshotError::Unreachable { url: url.clone(), source };
        let answer = asker.get(&url, "/readyz").await.map_err(unreachable)?;
        let kind = match (answer.body.get("ranks"), answer.body.get("targets")) {
            (Some(Value::Array(_)), _) => Kind::Sidecar,
            (_, Some(Value::Array(_))) => Kind::Router,
            _ => return Err(SnapshotError::Stranger { url, status: answer.status.as_u16() }),
        };
        let mut pages = Pages { asker, url: &url, missing: Vec::new() };
        let version = pages.page("/version", "/version").await.unwrap_or_default();
        let mut taken = Self {
            url: url.clone(),
            kind,
            version,
            ranks: Vec::new(),
            recent: Vec::new(),
            slowest: Vec::new(),
            latency: Value::Null,
            peers: Vec::new(),
            missing: Vec::new(),
        };
        match kind {
            Kind::Sidecar => pages.of_sidecar(&mut taken, limit).await?,
            Kind::Router => {
                taken.ranks = list(Some(answer.body), "targets");
                pages.of_router(&mut taken, limit).await;
            }
        }
        taken.missing = pages.missing;
        Ok(taken)
    }
}

/// Asks page after page and remembers which are missing.
struct Pages<'a> {
    asker: &'a Asker,
    url: &'a str,
    missing: Vec<Missing>,
}

impl Pages<'_> {
    async fn of_sidecar(&mut self, taken: &mut Snapshot, limit: usize) -> Result<(), SnapshotError> {
        let ranks = self.page("/v1/ranks", "/v1/ranks").await;
        let refused = |missing: &Missing| missing.path == "/v1/ranks" && missing.why.contains("token");
        if self.missing.iter().any(refused) {
            return Err(SnapshotError::Token { url: self.url.to_owned() });
        }
        taken.ranks = list(ranks, "ranks");
        let path = "/v1/transfers";
        taken.slowest = list(self.page(path, &format!("{path}?slowest={limit}")).await, "transfers");
        taken.recent = list(self.page(path, &format!("{path}?limit={limit}&why=true")).await, "transfers");
        // A build that knows no limit lists all of them.
        taken.recent.truncate(limit);
        taken.latency = self.page("/v1/latency", "/v1/latency?window=60s&by=stage").await.unwrap_or_default();
        taken.peers = list(self.page("/v1/peers", "/v1/peers").await, "peers");
        Ok(())
    }

    async fn of_router(&mut self, taken: &mut Snapshot, limit: usize) {
        // The same ranks with more about each, where the reader may see that.
        let workers = list(self.page("/v1/workers", "/v1/workers").await, "workers");
        if !workers.is_empty() {
            taken.ranks = workers;
        }
        let path = "/v1/requests";
        taken.slowest = list(self.page(path, &format!("{path}?slowest={limit}")).await, "requests");
        taken.recent = list(self.page(path, &format!("{path}?limit={limit}")).await, "requests");
    }

    /// A page's JSON; `path` is its name without a query.
    async fn page(&mut self, path: &'static str, full: &str) -> Option<Value> {
        let why = match self.asker.get(self.url, full).await {
            Ok(answer) if answer.status.is_success() => return Some(answer.body),
            Ok(answer) => refusal(answer.status),
            Err(error) => crate::ask::with_causes(&error),
        };
        if self.missing.iter().all(|missing| missing.path != path) {
            self.missing.push(Missing { path, why });
        }
        None
    }
}

fn refusal(status: StatusCode) -> String {
    match status {
        StatusCode::NOT_FOUND => {
            "not answered here: an older build, or a router's page that only its --admin-port has".to_owned()
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "wants a token: --token-file FILE".to_owned(),
        other => format!("answered {}", other.as_u16()),
    }
}

fn list(page: Option<Value>, name: &str) -> Vec<Value> {
    match page {
        Some(Value::Object(mut page)) => match page.remove(name) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

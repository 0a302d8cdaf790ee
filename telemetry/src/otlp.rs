//! Sending spans to an OTLP collector: HTTP, protobuf, in batches, by a task of its own.
//!
//! Nobody waits for it: the queue before it is bounded ([`Spans`] counts what does not fit), every post has a deadline, and what cannot be
//! delivered is counted and gone. `https` is not spoken: a collector stands beside the process or in its cluster.

mod encode;
mod post;

use std::time::Duration;

use http::{HeaderMap, Uri};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::trace::{Lost, Span, Spans, channel};
use encode::encode;
use post::{Collector, PostError};

/// Spans in one message.
const BATCH: usize = 512;
/// How long a span waits for others.
const EVERY: Duration = Duration::from_secs(1);
/// After a failed post, before the one more try that each batch gets.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the end of the process may wait for the collector.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Who sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `service.name`.
    pub name: String,
    /// `service.version`.
    pub version: String,
    /// `service.instance.id`: differs between processes.
    pub instance: String,
}

/// Where to, and as whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The whole address, `http://HOST:PORT/v1/traces`.
    pub endpoint: Uri,
    /// Sent with each post, for collectors that want a key.
    pub headers: HeaderMap,
    /// Who sends.
    pub service: Service,
    /// The share of traces begun here that are recorded, 0 to 1.
    pub share: f64,
    /// How long the collector may take to answer.
    pub timeout: Duration,
}

/// The running exporter.
#[derive(Debug)]
pub struct Exporter {
    finish: CancellationToken,
    tasks: TaskTracker,
}

impl Exporter {
    /// Starts it within a tokio runtime. The collector need not be there.
    pub fn start(settings: Settings) -> (Spans, Self) {
        let (spans, queue) = channel(settings.share);
        let (finish, tasks) = (CancellationToken::new(), TaskTracker::new());
        info!(collector = %settings.endpoint, service = settings.service.name, "traces are exported");
        let worker = Worker {
            collector: Collector::new(&settings),
            service: settings.service,
            spans: spans.clone(),
            finish: finish.clone(),
            deadline: None,
            failing: false,
        };
        tasks.spawn(worker.run(queue));
        tasks.close();
        (spans, Self { finish, tasks })
    }

    /// Sends what is left, within a deadline; the rest is lost.
    pub async fn finish(self) {
        self.finish.cancel();
        if timeout(LAST_WORDS.saturating_mul(2), self.tasks.wait()).await.is_err() {
            warn!("the exporter of traces does not end");
        }
    }
}

struct Worker {
    collector: Collector,
    service: Service,
    spans: Spans,
    finish: CancellationToken,
    /// When the process's end stops waiting.
    deadline: Option<Instant>,
    /// The last post failed, which has been said.
    failing: bool,
}

impl Worker {
    async fn run(mut self, mut queue: mpsc::Receiver<Vec<Span>>) {
        let mut batch: Vec<Span> = Vec::new();
        let mut due: Option<Instant> = None;
        loop {
            let last = tokio::select! {
                biased;
                () = self.finish.cancelled() => true,
                () = at(due) => false,
                set = queue.recv() => match set {
                    Some(set) => {
                        batch.extend(set);
                        due = due.or_else(|| Some(Instant::now() + EVERY));
                        if batch.len() < BATCH {
                            continue;
                        }
                        false
                    }
                    None => true,
                },
            };
            if last {
                queue.close();
                while let Some(set) = queue.recv().await {
                    batch.extend(set);
                }
            }
            due = None;
            let mut rest = std::mem::take(&mut batch);
            while !rest.is_empty() {
                let next = rest.split_off(rest.len().min(BATCH));
                self.deliver(rest).await;
                rest = next;
            }
            if last {
                return;
            }
        }
    }

    /// One message, tried twice.
    async fn deliver(&mut self, batch: Vec<Span>) {
        let count = batch.len();
        let message = encode(&self.service, &batch);
        drop(batch);
        let sending = async {
            match self.collector.post(message.clone()).await {
                Err(error) if error.may_pass() => {
                    tokio::time::sleep(AGAIN).await;
                    self.collector.post(message).await
                }
                done => done,
            }
        };
        let (finish, deadline) = (&self.finish, &mut self.deadline);
        let over = async {
            finish.cancelled().await;
            sleep_until(*deadline.get_or_insert_with(|| Instant::now() + LAST_WORDS)).await;
        };
        let sent = tokio::select! {
            biased;
            sent = sending => sent,
            () = over => {
                self.spans.counts().lose(Lost::Shutdown, count);
                return;
            }
        };
        match sent {
            Ok(refused) => {
                let refused = usize::try_from(refused).unwrap_or(0).min(count);
                self.spans.counts().export(count - refused);
                self.spans.counts().lose(Lost::Refused, refused);
                if std::mem::take(&mut self.failing) {
                    info!("spans reach the collector again");
                }
            }
            Err(error) => {
                self.spans.counts().lose(if error.was_reached() { Lost::Refused } else { Lost::Unreachable }, count);
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(error = &error as &dyn std::error::Error, "spans do not reach the collector and are dropped");
                }
            }
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl PostError {
    /// Whether the same may work a moment later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Late(_) => true,
            Self::Status(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
            Self::Request(_) | Self::Answer => false,
        }
    }

    fn was_reached(&self) -> bool {
        matches!(self, Self::Status(_) | Self::Answer)
    }
}

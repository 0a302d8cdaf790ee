//! How the process ends: gate → drain → stop → quiesce → close, each with its own budget.
//!
//! *Gate*: no new work, `/readyz` fails, event streams end. *Drain*: work in flight ends by itself while the API still serves its claims
//! and deletes. *Stop* and *quiesce*: what is left is cut off and hardware comes to rest. *Close*: agents and the listener go.
//! The budgets' sum must stay below what the supervisor grants before it kills.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::model::ShutDown;
use crate::pod::Pod;

/// How long each phase may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Work in flight ends by itself (and then the core stops and quiesces on its own budget).
    pub drain: Duration,
    /// The core may need this much more than `drain` before it is called stuck.
    pub quiesce: Duration,
    /// Open connections and tasks end.
    pub close: Duration,
}

impl Default for Budgets {
    /// 15 s + 12 s + 2 s: below the 30 s that Kubernetes grants by default. The core gives its agents 10 s to come to rest.
    fn default() -> Self {
        Self { drain: Duration::from_secs(15), quiesce: Duration::from_secs(12), close: Duration::from_secs(2) }
    }
}

/// The switches of one process and the tasks that obey them.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    gate: CancellationToken,
    stop: CancellationToken,
    core: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// Cancelled when no new work is taken any more.
    pub fn gate(&self) -> &CancellationToken {
        &self.gate
    }

    /// Cancelled when the HTTP server has to end: after the drain.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// The core's own switch; used after its orderly shutdown.
    pub fn core(&self) -> &CancellationToken {
        &self.core
    }

    /// Every task of the process lives here.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Runs all phases. Never longer than the sum of the budgets.
    pub async fn shut_down(&self, pod: &Pod, budgets: Budgets) -> ShutDown {
        info!(phase = "gate", "shutting down");
        pod.drain();
        self.gate.cancel();

        let core = timeout(budgets.drain.saturating_add(budgets.quiesce), pod.shut_down(budgets.drain));
        let outcome = core.await.unwrap_or(ShutDown::Stuck);

        self.stop.cancel();
        self.core.cancel();
        self.tasks.close();
        if timeout(budgets.close, self.tasks.wait()).await.is_err() {
            warn!(phase = "close", tasks = self.tasks.len(), "tasks did not end in time");
        }
        match outcome {
            ShutDown::Drained => info!(phase = "close", outcome = "drained", "shut down"),
            ShutDown::Stopped => info!(phase = "close", outcome = "stopped", "shut down"),
            ShutDown::Stuck => warn!(phase = "close", outcome = "stuck", "shut down; memory stays pinned until exit"),
        }
        outcome
    }
}

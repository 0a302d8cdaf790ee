//! The sidecar's core as its edge sees it.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::{DpRank, EngineRequestId, TransferId};
use side_channel::SideChannel;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine_http::EngineHttp;
use crate::fabrics::Fabrics;
use crate::model::{
    Counters, HandleError, HandleSnapshot, Landed, PodConfig, RankSnapshot, ReceiptSink, ReportHandle, ShutDown,
    StartError, StartTransfer, TransferError, TransferFilter, TransferSnapshot,
};

/// What a pod is given to work with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Makes NIXL agents.
    pub fabrics: Arc<dyn Fabrics>,
    /// The engine's HTTP pages (`TcpEngine::new(config.engine.clone())` outside tests).
    pub engine: Arc<dyn EngineHttp>,
    /// vLLM's side channel.
    pub side_channel: Arc<dyn SideChannel>,
    /// Where receipts go on record.
    pub receipts: Arc<dyn ReceiptSink>,
}

/// The ranks of one pod. Clones are handles to the same pod.
#[derive(Clone, Debug)]
pub struct Pod {
    ranks: watch::Receiver<Arc<Vec<RankSnapshot>>>,
    counters: Arc<Counters>,
}

impl Pod {
    /// Binds the virtual engines' side channels (decode role) and starts one task per rank on `tasks`.
    ///
    /// # Errors
    /// [`StartError`] for a configuration that cannot work or a port that is taken. A missing engine is no error: its ranks are not ready.
    #[expect(clippy::unused_async, reason = "binds ports")]
    pub async fn start(
        config: PodConfig,
        parts: Parts,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        drop((config, parts, tasks, stop));
        let (_, ranks) = watch::channel(Arc::new(Vec::new()));
        Ok(Self { ranks, counters: Arc::default() })
    }

    /// The ports on which the virtual engines listen, by local rank; empty in the prefill role.
    pub fn side_channel_ports(&self) -> Vec<u16> {
        Vec::new()
    }

    /// Pulls one prefill's KV into staging and returns when it has landed.
    ///
    /// # Errors
    /// [`TransferError`], see its `code`.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the transfer (memory that hardware may write stays pinned).
    pub async fn transfer(&self, start: StartTransfer) -> Result<Landed, TransferError> {
        self.begin(start).await.and(Err(TransferError::ShuttingDown))
    }

    /// Starts a transfer without waiting for its end; the same attempt key gives the same transfer.
    ///
    /// # Errors
    /// [`TransferError`] for what can be refused at once.
    #[expect(clippy::unused_async, reason = "asks the rank's task")]
    pub async fn begin(&self, start: StartTransfer) -> Result<TransferId, TransferError> {
        drop(start);
        Err(TransferError::ShuttingDown)
    }

    /// A transfer as it stands; `None` when it is unknown or forgotten.
    pub fn get(&self, transfer: &TransferId) -> Option<TransferSnapshot> {
        drop(transfer.clone());
        None
    }

    /// The receipt and rewritten parameters of a landed transfer.
    pub fn landed(&self, transfer: &TransferId) -> Option<Landed> {
        drop(transfer.clone());
        None
    }

    /// Waits until the transfer is settled (landed, done or failed) or the time is over; returns it as it then stands.
    #[expect(clippy::unused_async, reason = "waits")]
    pub async fn wait(&self, transfer: &TransferId, at_most: Duration) -> Option<TransferSnapshot> {
        drop((transfer.clone(), at_most));
        None
    }

    /// Recent transfers, the newest first.
    pub fn list(&self, filter: TransferFilter) -> Vec<TransferSnapshot> {
        let _: TransferFilter = filter;
        Vec::new()
    }

    /// Renews the claim on a landed transfer; returns how long it now holds.
    ///
    /// # Errors
    /// `not_found`, or `cancelled` when it is not landed.
    #[expect(clippy::unused_async, reason = "asks the rank's task")]
    pub async fn claim(&self, transfer: &TransferId) -> Result<Duration, TransferError> {
        Err(TransferError::NotFound(transfer.clone()))
    }

    /// Cancels a running transfer, or says that the decode leg of a landed one has ended. Idempotent.
    ///
    /// # Errors
    /// `not_found`.
    #[expect(clippy::unused_async, reason = "asks the rank's task")]
    pub async fn finish(&self, transfer: &TransferId) -> Result<TransferSnapshot, TransferError> {
        Err(TransferError::NotFound(transfer.clone()))
    }

    /// All ranks, in order of their numbers; a new value at every change.
    pub fn ranks(&self) -> watch::Receiver<Arc<Vec<RankSnapshot>>> {
        self.ranks.clone()
    }

    /// Handles alive or recently ended.
    pub fn handles(&self) -> Vec<HandleSnapshot> {
        Vec::new()
    }

    /// Takes note of a finished prefill (prefill role). Idempotent.
    ///
    /// # Errors
    /// [`HandleError`] for a foreign rank, a wrong engine, or the decode role.
    #[expect(clippy::unused_async, reason = "asks the rank's task")]
    pub async fn report_handle(&self, report: ReportHandle) -> Result<HandleSnapshot, HandleError> {
        drop(report);
        Err(HandleError::Refused(TransferError::ShuttingDown))
    }

    /// Tells the engine that nobody will read a prefill's blocks (prefill role). Idempotent: an unknown request is told too, as the
    /// engine ignores what it does not know.
    ///
    /// # Errors
    /// [`HandleError`] for a foreign rank, a rank that is not ready, or the decode role.
    #[expect(clippy::unused_async, reason = "asks the rank's task")]
    pub async fn release_handle(&self, rank: DpRank, request: &EngineRequestId) -> Result<(), HandleError> {
        Err(HandleError::NotFound { rank, request: request.clone() })
    }

    /// Takes no new work from now on.
    pub fn drain(&self) {}

    /// Drains, waits for work to end until `deadline` has passed, cuts off the rest, closes the agents.
    #[expect(clippy::unused_async, reason = "waits")]
    pub async fn shut_down(&self, deadline: Duration) -> ShutDown {
        let _: Duration = deadline;
        ShutDown::Drained
    }

    /// Whether all agent threads live and get round.
    pub fn alive(&self) -> bool {
        true
    }

    /// Totals since start.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

//! The sidecar's core as its edge sees it.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::{DpRank, EngineId, EngineRequestId, LocalRank, TransferId};
use kv::layout::KvLayout;
use kv::shards::MAX_SHARDS;
use side_channel::{Endpoint, SideChannel};
use telemetry::trace::Spans;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agents::Agents;
use crate::digest::source::SourceDigests;
use crate::digest::{DigestAsk, DigestError, Digests};
use crate::engine_http::EngineHttp;
use crate::fabrics::Fabrics;
use crate::gpus;
use crate::latency::Latency;
use crate::model::{
    AllRanks, Counters, HandleError, HandleSnapshot, Landed, LetGo, PodConfig, RankHandles, RankSnapshot, ReceiptSink,
    ReportHandle, Role, ShutDown, StagingKind, StartError, StartTransfer, TransferError, TransferFilter,
    TransferSnapshot,
};
use crate::peer_book::KnownPeer;
use crate::quiet::{InUse, Quiet};
use crate::rank::board::AttemptKey;
use crate::rank::door::Door;
use crate::rank::{COMMANDS, Command, Own, Rank, Shared, Waiter};
use crate::session::{Builder, Directory};
use crate::staging;
use crate::transport::Transport;
use crate::watcher::{EngineView, Looked, watch_engine};

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
    /// Where the spans of traced transfers go.
    pub spans: Spans,
    /// Who says what prefill engines hold (`HttpSources` outside tests).
    pub sources: Arc<dyn SourceDigests>,
}

/// The ranks of one pod. Clones are handles to the same pod.
#[derive(Clone, Debug)]
pub struct Pod {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Shared,
    ranks: Vec<RankHandle>,
    view: watch::Receiver<AllRanks>,
    quiet: Quiet,
    /// Where the virtual engines listen, by local rank.
    side_channel_ports: Vec<u16>,
    fabrics: Arc<dyn Fabrics>,
    agents: Agents,
    /// Asked once, after an agent was made.
    transport: OnceCell<Arc<Transport>>,
}

#[derive(Debug)]
struct RankHandle {
    commands: mpsc::Sender<Command>,
    ended: watch::Receiver<Option<ShutDown>>,
}

/// How long a rank may take to say who holds its blocks.
const HANDLES_WITHIN: Duration = Duration::from_secs(2);

impl Pod {
    /// Binds the virtual engines' side channels (decode role) and starts one task per rank on `tasks`.
    ///
    /// # Errors
    /// [`StartError`] for a configuration that cannot work, or when no rank can listen for D. A missing engine is no error, and neither is
    /// a port that somebody else has: those ranks are not ready.
    pub async fn start(
        config: PodConfig,
        parts: Parts,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        check(&config)?;
        let config = Arc::new(config);
        let gpus = gpus::open(&config).await?;
        let (view_sender, engine_view) = watch::channel(Arc::new(EngineView::default()));
        let locals = || (0..config.dp_size).map(LocalRank);
        let unknown =
            locals().map(|local| Arc::new(RankSnapshot::unknown(local, config.rank_offset, config.tp_size))).collect();
        let (ranks, view) = watch::channel(Arc::new(unknown));
        let shared = Shared {
            config: Arc::clone(&config),
            side_channel: Arc::clone(&parts.side_channel),
            receipts: Arc::clone(&parts.receipts),
            sources: Arc::clone(&parts.sources),
            tasks: tasks.clone(),
            gate: CancellationToken::new(),
            stop: stop.child_token(),
            board: Arc::default(),
            ranks: Arc::new(ranks),
            counters: Arc::default(),
            latency: Arc::default(),
            known_peers: Arc::default(),
            spans: parts.spans.clone(),
        };
        let (directory, agents) = (Arc::new(Directory::default()), Agents::default());
        let (mut handles, mut side_channel_ports, mut owns) = (Vec::new(), Vec::new(), Vec::new());
        let (mut open, mut closed) = (0, None);
        for local_rank in locals() {
            let dp_rank = local_rank.global(config.rank_offset);
            let door = match config.role {
                Role::Prefill => None,
                Role::Decode => {
                    let listen = listens_at(&config, local_rank);
                    let opening = Door::open(&*parts.side_channel, listen, &config.advertise_host, dp_rank);
                    let (door, refused) = opening.await;
                    open += usize::from(refused.is_none());
                    closed = closed.or(refused);
                    side_channel_ports.push(door.endpoint.port);
                    Some(door)
                }
            };
            let port = config.engine_side_channel.port.saturating_add(dp_rank.0);
            owns.push(Own {
                dp_rank,
                local_rank,
                engine_endpoint: config.engine_side_channel.with_port(port),
                door,
                builder: Builder {
                    fabrics: Arc::clone(&parts.fabrics),
                    agents: agents.clone(),
                    directory: Arc::clone(&directory),
                    rank: dp_rank,
                    staging: config.staging,
                    gpus: gpus.of_rank(&config, local_rank),
                    staging_bytes: config.staging_bytes,
                },
            });
        }
        // One port that somebody else has costs its rank; when none can be had, the address is wrong.
        if let Some(error) = closed.filter(|_| open == 0) {
            return Err(error);
        }
        // Nothing runs before everything is bound: a pod that cannot start leaves nothing behind.
        for own in owns {
            let (commands, receiver) = mpsc::channel(COMMANDS);
            let (ended_sender, ended) = watch::channel(None);
            let rank = Rank::run(shared.clone(), own, receiver, engine_view.clone());
            tasks.spawn(async move {
                let how = rank.await;
                ended_sender.send_replace(Some(how));
            });
            handles.push(RankHandle { commands, ended });
        }
        let (looks, looked) = watch::channel(Looked::default());
        tasks.spawn(watch_engine(Arc::clone(&parts.engine), (view_sender, looks), shared.stop.clone()));
        let quiet = Quiet::watch(config.kv_lease, looked, view.clone(), tasks);
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                ranks: handles,
                view,
                quiet,
                side_channel_ports,
                fabrics: parts.fabrics,
                agents,
                transport: OnceCell::new(),
            }),
        })
    }

    /// Where agents come from.
    pub(crate) fn fabrics(&self) -> &Arc<dyn Fabrics> {
        &self.inner.fabrics
    }

    /// Those that are in use.
    pub(crate) fn agents(&self) -> &Agents {
        &self.inner.agents
    }

    /// The ports on which the virtual engines listen, by local rank, also those that are still tried; empty in the prefill role.
    pub fn side_channel_ports(&self) -> Vec<u16> {
        self.inner.side_channel_ports.clone()
    }

    /// Pulls one prefill's KV into staging and returns when it has landed.
    ///
    /// # Errors
    /// [`TransferError`], see its `code`.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the transfer (memory that hardware may write stays pinned).
    pub async fn transfer(&self, start: StartTransfer) -> Result<Landed, TransferError> {
        let (waiter, landed) = oneshot::channel();
        let (commands, transfer, _begun) = self.enlist(start, Some(waiter))?;
        let guard = Abandon { commands, transfer: Some(transfer), tasks: self.inner.shared.tasks.clone() };
        let outcome = landed.await.unwrap_or(Err(TransferError::ShuttingDown));
        guard.disarm();
        outcome
    }

    /// Starts a transfer without waiting for its end; the same attempt key gives the same transfer.
    ///
    /// # Errors
    /// [`TransferError`] for what can be refused at once.
    pub async fn begin(&self, start: StartTransfer) -> Result<TransferId, TransferError> {
        let (_, _, begun) = self.enlist(start, None)?;
        begun.await.unwrap_or(Err(TransferError::ShuttingDown))
    }

    fn enlist(&self, start: StartTransfer, waiter: Option<Waiter>) -> Result<Enlisted, TransferError> {
        if self.inner.shared.gate.is_cancelled() {
            return Err(TransferError::ShuttingDown);
        }
        let rank = self.rank(start.dp_rank)?;
        let dp_rank = start.dp_rank;
        let key = AttemptKey {
            dp_rank,
            engine: start.params.remote_engine_id.clone(),
            request: start.params.remote_request_id.clone(),
        };
        let attempt = start.attempt.clone();
        let (begun, answer) = oneshot::channel();
        let fresh = TransferId::new(format!("{dp_rank}-{}", uuid::Uuid::new_v4().simple()));
        let send = |transfer: &TransferId| {
            let transfer = transfer.clone();
            let command = Command::Start { transfer, start: Box::new(start), at: Instant::now(), begun, waiter };
            rank.commands.try_send(command).map_err(|error| refused(&error, dp_rank))
        };
        match self.inner.shared.board.enlist(&attempt, key, fresh, send) {
            None => Err(TransferError::AttemptConflict { attempt }),
            Some(Err(error)) => Err(error),
            Some(Ok(transfer)) => Ok((rank.commands.clone(), transfer, answer)),
        }
    }

    /// A transfer as it stands; `None` when it is unknown or forgotten.
    pub fn get(&self, transfer: &TransferId) -> Option<TransferSnapshot> {
        Some(self.inner.shared.board.follow(transfer)?.borrow().snapshot.clone())
    }

    /// The receipt and rewritten parameters of a landed transfer.
    pub fn landed(&self, transfer: &TransferId) -> Option<Landed> {
        let shown = self.inner.shared.board.follow(transfer)?.borrow().clone();
        shown.landed.as_deref().cloned()
    }

    /// Waits until the transfer is settled (landed, done or failed) or the time is over; returns it as it then stands.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn wait(&self, transfer: &TransferId, at_most: Duration) -> Option<TransferSnapshot> {
        let mut shown = self.inner.shared.board.follow(transfer)?;
        let settled = shown.wait_for(|shown| shown.snapshot.state.is_settled());
        // Out of time or forgotten meanwhile: what was seen last is the answer.
        let seen = match tokio::time::timeout(at_most, settled).await {
            Ok(Ok(seen)) => Some(seen.snapshot.clone()),
            Ok(Err(_)) | Err(_) => None,
        };
        Some(seen.unwrap_or_else(|| shown.borrow().snapshot.clone()))
    }

    /// Recent transfers, the newest first.
    pub fn list(&self, filter: &TransferFilter) -> Vec<TransferSnapshot> {
        self.inner.shared.board.list(filter)
    }

    /// Renews the claim on a landed transfer; returns how long it now holds.
    ///
    /// # Errors
    /// `not_found`, or `cancelled` when it is not landed.
    pub async fn claim(&self, transfer: &TransferId) -> Result<Duration, TransferError> {
        let (reply, answer) = oneshot::channel();
        self.send_for(transfer, Command::Claim(transfer.clone(), reply)).await?;
        answer.await.unwrap_or(Err(TransferError::ShuttingDown))
    }

    /// Cancels a running transfer, or says that the decode leg of a landed one has ended. Idempotent.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn finish(&self, transfer: &TransferId) -> Result<TransferSnapshot, TransferError> {
        let (reply, answer) = oneshot::channel();
        self.send_for(transfer, Command::Finish(transfer.clone(), reply)).await?;
        answer.await.unwrap_or(Err(TransferError::ShuttingDown))
    }

    /// Sends a command to the rank that a transfer's id names.
    async fn send_for(&self, transfer: &TransferId, command: Command) -> Result<(), TransferError> {
        let not_found = || TransferError::NotFound(transfer.clone());
        let rank = transfer.as_str().split_once('-').and_then(|(rank, _)| rank.parse().ok()).map(DpRank);
        let rank = rank.and_then(|rank| self.rank(rank).ok()).ok_or_else(not_found)?;
        rank.commands.send(command).await.map_err(|_ended| TransferError::ShuttingDown)
    }

    fn rank(&self, rank: DpRank) -> Result<&RankHandle, TransferError> {
        let config = &self.inner.shared.config;
        let owned = config.rank_offset..config.rank_offset.saturating_add(config.dp_size);
        let local = rank.local(config.rank_offset, config.dp_size);
        let handle = local.and_then(|local| self.inner.ranks.get(usize::from(local.0)));
        handle.ok_or(TransferError::RankUnknown { rank, owned })
    }

    /// All ranks, in order of their numbers; a new value at every change.
    pub fn ranks(&self) -> watch::Receiver<AllRanks> {
        self.inner.view.clone()
    }

    /// Who holds which blocks: one entry per rank, in order; none for a rank whose task has ended or does not answer in time.
    pub async fn handles(&self) -> Vec<RankHandles> {
        let asked = self.inner.ranks.iter().map(async |rank| {
            let (reply, answer) = oneshot::channel();
            rank.commands.send(Command::Handles(reply)).await.ok()?;
            answer.await.ok()
        });
        let asked = asked.map(|asking| tokio::time::timeout(HANDLES_WITHIN, asking));
        futures_util::future::join_all(asked).await.into_iter().filter_map(|told| told.ok().flatten()).collect()
    }

    /// Takes note of a finished prefill (prefill role). Idempotent.
    ///
    /// # Errors
    /// [`HandleError`] for a foreign rank, a wrong engine, or the decode role.
    pub async fn report_handle(&self, report: ReportHandle) -> Result<HandleSnapshot, HandleError> {
        let rank = self.rank(report.dp_rank)?;
        let (reply, answer) = oneshot::channel();
        let sent = rank.commands.send(Command::Report(Box::new(report), reply)).await;
        sent.map_err(|_ended| TransferError::ShuttingDown)?;
        answer.await.unwrap_or(Err(TransferError::ShuttingDown.into()))
    }

    /// Lets a prefill's handle go (prefill role). For an abandoned one the engine is told that nobody will read its blocks. Idempotent: an
    /// unknown request is told too, as the engine ignores what it does not know.
    ///
    /// # Errors
    /// [`HandleError`] for a foreign rank, a rank that is not ready, or the decode role.
    pub async fn release_handle(&self, rank: DpRank, request: &EngineRequestId, why: LetGo) -> Result<(), HandleError> {
        let rank = self.rank(rank)?;
        let (reply, answer) = oneshot::channel();
        let sent = rank.commands.send(Command::Release(request.clone(), why, reply)).await;
        sent.map_err(|_ended| TransferError::ShuttingDown)?;
        answer.await.unwrap_or(Err(TransferError::ShuttingDown.into()))
    }

    /// The geometry of one of the pod's engines (TP shard 0).
    pub(crate) fn layout_of(&self, engine: &EngineId) -> Option<Arc<KvLayout>> {
        self.inner.view.borrow().iter().find(|rank| rank.engine_id.as_ref() == Some(engine))?.layout.clone()
    }

    /// Digests of blocks of one of the pod's engines (prefill role).
    ///
    /// # Errors
    /// [`DigestError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the work at its next step.
    pub async fn digests(&self, ask: DigestAsk) -> Result<Digests, DigestError> {
        if self.inner.shared.config.role != Role::Prefill {
            return Err(DigestError::WrongRole);
        }
        let ranks = self.inner.view.borrow().clone();
        let rank = ranks.iter().find(|rank| rank.engine_id.as_ref() == Some(&ask.engine));
        let rank = rank.ok_or_else(|| DigestError::UnknownEngine(ask.engine.clone()))?;
        let (reply, answer) = oneshot::channel();
        let sent = self.rank(rank.dp_rank)?.commands.send(Command::Digest(Box::new(ask), reply)).await;
        sent.map_err(|_ended| DigestError::Ending)?;
        answer.await.unwrap_or(Err(DigestError::Ending))
    }

    /// Waits until the engine has been quiet for `steady`, as far as can be known: see [`crate::quiet`].
    ///
    /// # Errors
    /// What is in the way after `at_most`.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn until_quiet(&self, steady: Duration, at_most: Duration) -> Result<(), Vec<InUse>> {
        self.inner.quiet.until(steady, at_most).await
    }

    /// Takes no new work from now on.
    pub fn drain(&self) {
        self.inner.shared.gate.cancel();
    }

    /// Drains, waits for work to end until `deadline` has passed, cuts off the rest, closes the agents. Work is also what somebody has yet to
    /// read of the pod's engine, and a hook that waits for the engine to be quiet: both need this process.
    ///
    /// # Cancel safety
    /// Not safe: dropped before its end, the ranks may go on, drained.
    pub async fn shut_down(&self, deadline: Duration) -> ShutDown {
        self.drain();
        let mut ranks = self.inner.view.clone();
        let idle =
            |ranks: &AllRanks| ranks.iter().all(|rank| rank.draining && rank.in_flight == 0 && rank.awaited == 0);
        let mut hooks = self.inner.quiet.waiting();
        let drained = async {
            // The other ends of both are this pod's own.
            drop(ranks.wait_for(idle).await);
            drop(hooks.wait_for(|waiting| *waiting == 0).await);
        };
        // Whether that worked is seen by each rank itself when it ends.
        tokio::select! {
            () = self.inner.shared.stop.cancelled() => {}
            drained = tokio::time::timeout(deadline, drained) => {
                if drained.is_err() {
                    tracing::warn!(?deadline, "work had not ended in time and is cut off");
                }
            }
        }
        self.inner.shared.stop.cancel();
        let mut worst = ShutDown::Drained;
        for rank in &self.inner.ranks {
            let mut ended = rank.ended.clone();
            let how = ended.wait_for(Option::is_some).await.ok().and_then(|how| *how).unwrap_or(ShutDown::Stuck);
            worst = match (worst, how) {
                (ShutDown::Stuck, _) | (_, ShutDown::Stuck) => ShutDown::Stuck,
                (ShutDown::Stopped, _) | (_, ShutDown::Stopped) => ShutDown::Stopped,
                (ShutDown::Drained, ShutDown::Drained) => ShutDown::Drained,
            };
        }
        worst
    }

    /// Whether all agent threads live and get round.
    pub fn alive(&self) -> bool {
        self.inner.agents.are_well()
    }

    /// Where the spans of traced requests go.
    pub fn spans(&self) -> &Spans {
        &self.inner.shared.spans
    }

    /// Where transfers spend their time.
    pub fn latency(&self) -> Arc<Latency> {
        Arc::clone(&self.inner.shared.latency)
    }

    /// The remote engines that the ranks have read from.
    pub fn peers(&self) -> Vec<KnownPeer> {
        self.inner.shared.known_peers.list()
    }

    /// What UCX may move bytes by; none before a rank has made its agents, or where there is no UCX.
    pub async fn transport(&self) -> Option<Arc<Transport>> {
        let fabrics = Arc::clone(&self.inner.fabrics);
        let asked = self.inner.transport.get_or_try_init(async || {
            let asking = tokio::task::spawn_blocking(move || fabrics.transport());
            asking.await.ok().flatten().map(Arc::new).ok_or(())
        });
        asked.await.ok().cloned()
    }

    /// Totals since start.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.inner.shared.counters)
    }
}

type Enlisted = (mpsc::Sender<Command>, TransferId, oneshot::Receiver<Result<TransferId, TransferError>>);

/// Says that one who waited has gone, unless disarmed.
#[derive(Debug)]
struct Abandon {
    commands: mpsc::Sender<Command>,
    transfer: Option<TransferId>,
    tasks: TaskTracker,
}

impl Abandon {
    fn disarm(mut self) {
        self.transfer = None;
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        let Some(transfer) = self.transfer.take() else { return };
        let commands = self.commands.clone();
        // A full queue must not swallow it; without a runtime everything ends anyway.
        if let Err(mpsc::error::TrySendError::Full(command)) = commands.try_send(Command::Abandoned(transfer))
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            self.tasks.spawn_on(
                async move {
                    if commands.send(command).await.is_err() {
                        tracing::trace!("the rank's task has ended");
                    }
                },
                &runtime,
            );
        }
    }
}

fn refused(error: &mpsc::error::TrySendError<Command>, rank: DpRank) -> TransferError {
    match error {
        mpsc::error::TrySendError::Full(_) => TransferError::Busy { rank },
        mpsc::error::TrySendError::Closed(_) => TransferError::ShuttingDown,
    }
}

fn check(config: &PodConfig) -> Result<(), StartError> {
    if config.dp_size == 0 || config.tp_size == 0 {
        return Err(StartError::Config("--data-parallel-size and --tensor-parallel-size must be at least 1"));
    }
    if config.tp_size > MAX_SHARDS {
        return Err(StartError::Config("--tensor-parallel-size is larger than 64"));
    }
    let Some(last_rank) = config.rank_offset.checked_add(config.dp_size - 1) else {
        return Err(StartError::Config("--rank-offset plus --data-parallel-size is larger than 65535"));
    };
    if config.engine_side_channel.port.checked_add(last_rank).is_none() {
        return Err(StartError::Config("--engine-side-channel: the last rank's port would be above 65535"));
    }
    let listen = config.side_channel_listen.port;
    if config.role == Role::Decode && listen != 0 && listen.checked_add(config.dp_size - 1).is_none() {
        return Err(StartError::Config("--side-channel-listen: the last rank's port would be above 65535"));
    }
    // Arenas are touched as they fill: a rank that is checked by itself would be told yes too often.
    let (ranks, each) = (config.dp_size, config.staging_bytes);
    if config.role == Role::Decode
        && config.staging != StagingKind::Vram
        && let Some(available) = staging::too_little(each.saturating_mul(u64::from(ranks)))
    {
        return Err(StartError::HostMemory { ranks, each, available });
    }
    Ok(())
}

fn listens_at(config: &PodConfig, local: LocalRank) -> Endpoint {
    let base = &config.side_channel_listen;
    if base.port == 0 { base.clone() } else { base.with_port(base.port.saturating_add(local.0)) }
}

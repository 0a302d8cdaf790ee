//! One DP rank of this pod: the one task that owns its slots, its transfers and what has landed.
//!
//! Commands of the pod, events of the jobs it spawned, the engine's state and timers all come to one loop; every decision is a `kv` machine's,
//! and the loop performs their effects. It never waits for I/O itself.
//!
//! | module | is |
//! |---|---|
//! | `engine` | follows the rank's engine from start to restart |
//! | `stage` | the decode role's state: a session and everything that lives in it |
//! | `admission` | beginning transfers |
//! | `door` | where D finds the rank |
//! | `connect` | the remote engines that they read from |
//! | `transfers` | driving transfers |
//! | `effects` | doing what the transfer machine asks for |
//! | `landed`, `landed_sets` | from landed to freed, and D's notifications |
//! | `recycle` | ending a quarantine with new pull agents |
//! | `handles` | the prefill role's handles |
//! | `held` | who holds which blocks, when somebody asks |
//! | `records` | what is shown of transfers, also after their end |
//! | `shown` | what is shown of the rank |
//! | `verify` | comparing what has landed with what P holds |
//! | `telling` | what P's workers are told |
//! | `jobs`, `timers`, `board` | what runs beside the loop; wake-ups; what everyone may read |

mod admission;
pub(crate) mod board;
mod connect;
pub(crate) mod door;
mod effects;
mod engine;
mod handles;
mod held;
mod jobs;
mod landed;
mod landed_sets;
mod records;
mod recycle;
mod shown;
mod stage;
mod telling;
mod timers;
mod transfers;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use kv::ids::{DpRank, EngineRequestId, LocalRank, TransferId};
use nixl::Closed;
use side_channel::Endpoint;
use telemetry::trace::Spans;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::digest::source::SourceDigests;
use crate::digest::{DigestAsk, DigestError, Digests};
use crate::latency::Latency;
use crate::model::{
    AllRanks, Counters, HandleError, HandleSnapshot, Landed, LetGo, PodConfig, RankHandles, RankSnapshot, ReceiptSink,
    ReportHandle, Role, ShutDown, StartTransfer, TransferError, TransferSnapshot,
};
use crate::peer_book::PeerBook;
use crate::session::Builder;
use crate::watcher::EngineView;
use board::Board;

use door::Door;
use engine::Engine;
use handles::Handles;
use jobs::Event;
use landed::Freed;
use records::Records;
use stage::Stage;
use timers::Timers;

/// Commands that may wait for a rank's task.
pub(crate) const COMMANDS: usize = 1024;
/// Events that may wait for it; the jobs wait when it is full.
const EVENTS: usize = 4096;
/// Commands and events handled before the loop looks at its timers and shows its state.
const BATCH: usize = 64;

/// One who waits for a transfer's end.
pub(crate) type Waiter = oneshot::Sender<Result<Landed, TransferError>>;

/// What the pod asks of a rank.
#[derive(Debug)]
pub(crate) enum Command {
    /// Begin a transfer, or join the one that has this id already.
    Start {
        transfer: TransferId,
        start: Box<StartTransfer>,
        /// When it was asked for: P's lease goes on while the command waits.
        at: Instant,
        begun: oneshot::Sender<Result<TransferId, TransferError>>,
        /// `None`: it goes on without anybody waiting.
        waiter: Option<Waiter>,
    },
    /// Someone who waited has gone.
    Abandoned(TransferId),
    /// Renew a claim.
    Claim(TransferId, oneshot::Sender<Result<Duration, TransferError>>),
    /// Cancel, or end the decode leg.
    Finish(TransferId, oneshot::Sender<Result<TransferSnapshot, TransferError>>),
    /// A prefill has finished (prefill role).
    Report(Box<ReportHandle>, oneshot::Sender<Result<HandleSnapshot, HandleError>>),
    /// Who holds which blocks.
    Handles(oneshot::Sender<RankHandles>),
    /// Digests of blocks are wanted (prefill role).
    Digest(Box<DigestAsk>, oneshot::Sender<Result<Digests, DigestError>>),
    /// A prefill's blocks are done with (prefill role).
    Release(EngineRequestId, LetGo, oneshot::Sender<Result<(), HandleError>>),
}

/// What all ranks of a pod share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    /// The configuration.
    pub config: Arc<PodConfig>,
    /// The side channel.
    pub side_channel: Arc<dyn side_channel::SideChannel>,
    /// Where receipts go on record.
    pub receipts: Arc<dyn ReceiptSink>,
    /// Who says what prefill engines hold.
    pub sources: Arc<dyn SourceDigests>,
    /// Where jobs run.
    pub tasks: TaskTracker,
    /// Cancelled: no new work.
    pub gate: CancellationToken,
    /// Cancelled: end now.
    pub stop: CancellationToken,
    /// Transfers to be read by everyone.
    pub board: Arc<Board>,
    /// All ranks, shown.
    pub ranks: Arc<watch::Sender<AllRanks>>,
    /// Totals.
    pub counters: Arc<Counters>,
    /// Where transfers spend their time.
    pub latency: Arc<Latency>,
    /// The remote engines read from.
    pub known_peers: Arc<PeerBook>,
    /// Where the spans of traced transfers go.
    pub spans: Spans,
}

/// What is one rank's own.
#[derive(Debug)]
pub(crate) struct Own {
    /// Global.
    pub dp_rank: DpRank,
    /// In this pod.
    pub local_rank: LocalRank,
    /// The engine's side channel of this rank.
    pub engine_endpoint: Endpoint,
    /// Where D finds the virtual engine (decode role).
    pub door: Option<Door>,
    /// Makes sessions.
    pub builder: Builder,
}

/// What a wake-up is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wake {
    /// Deadline or lease of a transfer.
    Transfer(TransferId),
    /// A heartbeat to P.
    Beat(TransferId),
    /// P has not been told yet.
    Tell(TransferId),
    /// A claim, or a quiet period.
    Landed(EngineRequestId),
    /// Someone's wait for staging is over.
    Queue,
    /// Ask the engine again.
    Engine,
    /// Try again to listen for D.
    Door,
    /// Try again to end a quarantine.
    Recycle,
    /// P's lease on a handle.
    Handle(EngineRequestId),
    /// Show the rank's state.
    Show,
}

/// The rank's task.
#[derive(Debug)]
pub(crate) struct Rank {
    shared: Shared,
    own: Own,
    events: mpsc::Sender<Event>,
    timers: Timers<Wake>,
    engine: Engine,
    stage: Option<Stage>,
    records: Records,
    handles: Handles,
    freed: Freed,
    shown: Option<Arc<RankSnapshot>>,
    /// Something has happened since the rank was last shown, or since that was planned.
    stirred: bool,
}

impl Rank {
    /// Runs a rank until `stop`; how it ended.
    pub(crate) async fn run(
        shared: Shared,
        own: Own,
        mut commands: mpsc::Receiver<Command>,
        mut view: watch::Receiver<Arc<EngineView>>,
    ) -> ShutDown {
        let (events, mut incoming) = mpsc::channel(EVENTS);
        let (stop, gate) = (shared.stop.clone(), shared.gate.clone());
        let records = Records::new(Arc::clone(&shared.board), shared.spans.clone());
        let mut rank = Self {
            shared,
            own,
            events,
            timers: Timers::new(),
            engine: Engine::default(),
            stage: None,
            records,
            handles: Handles::default(),
            freed: Freed::default(),
            shown: None,
            stirred: false,
        };
        let (mut batch_of_events, mut batch_of_commands) = (Vec::new(), Vec::new());
        let (mut gated, mut engine_watched) = (false, true);
        rank.watch_door();
        rank.show();
        loop {
            let wake = rank.timers.next();
            tokio::select! {
                () = stop.cancelled() => break,
                () = gate.cancelled(), if !gated => (gated, rank.stirred) = (true, true),
                count = incoming.recv_many(&mut batch_of_events, BATCH) => {
                    debug_assert!(count > 0, "the rank itself holds a sender");
                    for event in batch_of_events.drain(..) {
                        rank.on_event(event);
                    }
                }
                count = commands.recv_many(&mut batch_of_commands, BATCH) => {
                    if count == 0 {
                        break;
                    }
                    for command in batch_of_commands.drain(..) {
                        rank.on_command(command);
                    }
                }
                changed = view.changed(), if engine_watched => match changed {
                    Ok(()) => {
                        let view = view.borrow_and_update().clone();
                        rank.stirred = true;
                        rank.on_view(view);
                    }
                    Err(_ended) => engine_watched = false,
                },
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            rank.on_time();
            rank.settle();
            rank.show_soon();
        }
        rank.end().await
    }

    fn on_command(&mut self, command: Command) {
        self.stirred = true;
        match command {
            Command::Start { transfer, mut start, at, begun, waiter } => {
                start.prefill_done_age = start.prefill_done_age.saturating_add(at.elapsed());
                self.start(transfer, *start, begun, waiter);
            }
            Command::Abandoned(transfer) => self.abandoned(&transfer),
            Command::Claim(transfer, reply) => answer(reply, self.claim(&transfer)),
            Command::Finish(transfer, reply) => answer(reply, self.finish(&transfer)),
            Command::Report(report, reply) => answer(reply, self.report_handle(*report)),
            Command::Handles(reply) => answer(reply, self.held()),
            Command::Digest(ask, reply) => self.take_digests(*ask, reply),
            Command::Release(request, why, reply) => self.release_handle(request, why, reply),
        }
    }

    fn on_event(&mut self, event: Event) {
        self.stirred = true;
        match event {
            Event::Identity { incarnation, answer } => self.on_identity(incarnation, answer),
            Event::Session { identity, answer } => self.on_session(&identity, answer),
            Event::Teller { identity, answer } => self.on_teller(&identity, answer),
            Event::Peer { asked, engine, answered } => self.on_peer(&asked, &engine, answered),
            Event::Posted { transfer, shard, took } => self.on_posted(&transfer, shard, took),
            Event::ReadEnded { transfer, shard, answer } => self.on_read_ended(&transfer, shard, answer),
            Event::Sourced { transfer, answer, took } => self.on_sourced(&transfer, answer, took),
            Event::Verified { landed, compared } => self.on_verified(landed, compared),
            Event::Beaten { transfer, sent_at, told } => self.on_beaten(&transfer, sent_at, &told),
            Event::Told { transfer, told } => self.on_told(&transfer, told),
            Event::Notified { session, shard, notification } => self.on_notification(&session, shard, &notification),
            Event::Zeroed { session, slots, clean } => self.on_zeroed(&session, slots, clean),
            Event::Renewed { session, answer } => self.on_renewed(&session, answer),
            Event::Gone { session, generation, quiet } => self.on_gone(&session, generation, quiet),
            Event::Listening { answer } => self.on_listening(answer),
            Event::HandleReleased { request, failed } => self.on_handle_released(&request, failed),
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        while let Some(wake) = self.timers.pop_due(now) {
            self.stirred |= wake != Wake::Show;
            match wake {
                Wake::Transfer(transfer) => self.drive(&transfer, kv::transfer::Event::Tick),
                Wake::Beat(transfer) => self.beat_due(&transfer),
                Wake::Tell(transfer) => self.connect(&transfer),
                Wake::Landed(request) => self.collect(&request, kv::collect::Event::Tick),
                Wake::Queue => self.expire_queue(now),
                Wake::Engine => self.engine_pause_over(),
                Wake::Door => self.open_door(),
                Wake::Recycle => {}
                Wake::Handle(request) => self.handle_due(&request),
                Wake::Show => self.show(),
            }
        }
    }

    /// After anything has happened: serve who waits for slots, and end a quarantine when it is time.
    fn settle(&mut self) {
        self.grant_waiting();
        self.maybe_recycle();
    }

    fn decodes(&self) -> bool {
        self.shared.config.role == Role::Decode
    }

    /// Cuts everything off and closes the agents.
    async fn end(mut self) -> ShutDown {
        let idle = self.is_idle();
        let stuck = self.stage.as_ref().is_some_and(|stage| !stage.stuck.is_empty());
        self.cancel_all(&TransferError::ShuttingDown);
        let mut agents = self.handles.take_agents();
        if let Some(digester) = self.handles.take_digester() {
            agents.extend(digester.end().await);
        }
        if let Some(door) = &self.own.door {
            door.desk.set(None);
        }
        if let Some(stage) = self.stage.take() {
            agents.extend(stage.agents());
        }
        match (self.own.builder.agents.close(agents, CLOSE_WITHIN).await, stuck, idle) {
            (Closed::Stuck, _, _) | (_, true, _) => ShutDown::Stuck,
            (Closed::Quiet | Closed::Destroyed, false, true) => ShutDown::Drained,
            (Closed::Quiet | Closed::Destroyed, false, false) => ShutDown::Stopped,
        }
    }
}

/// How long an agent gets to end its transfers when it is closed.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// Answers a command; whoever asked may have gone.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        tracing::trace!("nobody waits for the answer");
    }
}

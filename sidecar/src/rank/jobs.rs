//! The work that runs beside a rank's task; each job ends in one [`Event`] to it (a read in two).

use std::sync::Arc;
use std::time::Duration;

use kv::blocks::GroupedBlocks;
use kv::copy::{CopyPlan, PlanError, SlotAssignment};
use kv::ids::{EngineId, EngineRequestId, TpRank, TransferId};
use kv::slots::SlotSet;
use nixl::bulk;
use nixl::{AgentName, DescError, FabricError, LocalDescs, Notification, Read, ReadDone, Reading, RemoteDescs};
use side_channel::{Endpoint, ServeError, Server};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::telling::Told;
use super::verify::{Compared, Comparison};
use crate::digest::Digests;
use crate::model::{Landed, ReceiptSink, Spoil, TransferError};
use crate::peers::{Asked, Handshake, Peer};
use crate::session::{Identity, IdentityError, Puller, Session, SessionError, Teller};
use crate::staging::Arena;

/// How long a receipt may take to be put on record.
const RECORD_WITHIN: Duration = Duration::from_secs(10);

/// What a job has to say.
#[derive(Debug)]
pub(crate) enum Event {
    /// The engine's side channel was asked.
    Identity { incarnation: u64, answer: Result<Identity, IdentityError> },
    /// A staging session was built.
    Session { identity: Arc<Identity>, answer: Result<Box<Session>, SessionError> },
    /// The prefill role's agent was made.
    Teller { identity: Arc<Identity>, answer: Result<Teller, SessionError> },
    /// A peer was asked.
    Peer { asked: Asked, engine: EngineId, answered: PeerAnswer },
    /// NIXL has accepted one shard's read.
    Posted { transfer: TransferId, shard: TpRank, took: Duration },
    /// One shard's read has ended.
    ReadEnded { transfer: TransferId, shard: TpRank, answer: Result<ReadEnd, ReadError> },
    /// P's sidecar was asked what P holds.
    Sourced { transfer: TransferId, answer: Result<Digests, TransferError>, took: Duration },
    /// What landed was compared, and put on record unless it differs.
    Verified { landed: Arc<Landed>, compared: Compared },
    /// A heartbeat went out to P's shards, or did not.
    Beaten { transfer: TransferId, sent_at: Instant, told: Told },
    /// P's shards were told that their blocks are free, or not.
    Told { transfer: TransferId, told: Told },
    /// D said something.
    Notified { session: EngineId, shard: TpRank, notification: Notification },
    /// Slots were zeroed; `clean` if all of them.
    Zeroed { session: EngineId, slots: SlotSet, clean: bool },
    /// New pull agents were made.
    Renewed { session: EngineId, answer: Result<Vec<Puller>, SessionError> },
    /// Pull agents of an earlier generation were closed; `quiet`: no hardware writes for them any more.
    Gone { session: EngineId, generation: u64, quiet: bool },
    /// Another try to listen for D.
    Listening { answer: Result<Server, ServeError> },
    /// The engine was told that nobody reads a handle.
    HandleReleased { request: EngineRequestId, failed: u64 },
}

/// Why a read did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// Given up before it was posted.
    #[error("the read was given up before it was posted")]
    GivenUp,
    /// No plan.
    #[error("plan the copy")]
    Plan(#[source] PlanError),
    /// No descriptors.
    #[error("describe the copy")]
    Descs(#[source] DescError),
    /// NIXL's error.
    #[error("read")]
    Fabric(#[source] FabricError),
}

/// One shard's read.
#[derive(Debug)]
pub(crate) struct ReadShard {
    pub transfer: TransferId,
    pub shard: TpRank,
    pub peer: Arc<Peer>,
    pub puller: Puller,
    pub arena: Arena,
    pub blocks: GroupedBlocks,
    pub slots: Arc<SlotAssignment>,
    /// Fault injection: wait first.
    pub hold: Option<Duration>,
    /// The transfer is not wanted any more: do not post.
    pub gave_up: CancellationToken,
    /// Since when it could be read.
    pub due: Instant,
    pub events: mpsc::Sender<Event>,
}

/// More blocks than this are described on the read's own task: the rank's does not stop for it.
const DESCRIBED_AT_ONCE: usize = 256;

/// A read that the agent has.
#[derive(Debug)]
pub(crate) struct Begun {
    reading: Reading,
    agent: AgentName,
    pieces: u64,
    planned: Duration,
    /// Its place with the agent.
    turn: OwnedSemaphorePermit,
}

/// A read whose descriptors are made.
struct Described {
    read: Read,
    pieces: u64,
    planned: Duration,
}

impl ReadShard {
    /// Hands a small read to the agent at once, if it has a place: waking another task for it would take longer than describing it.
    pub(crate) fn begin_small(&self) -> Option<Result<Begun, ReadError>> {
        if self.hold.is_some() || self.blocks.total() > DESCRIBED_AT_ONCE || self.gave_up.is_cancelled() {
            return None;
        }
        let turn = Arc::clone(&self.puller.turns).try_acquire_owned().ok()?;
        Some(self.described().map(|described| self.post(described, turn)))
    }

    /// Posts the read, if that has not begun, and reports how it goes. The memory is pinned by the agent, not by this future.
    pub(crate) async fn run(self, begun: Option<Result<Begun, ReadError>>) {
        let answer = match begun {
            Some(Ok(begun)) => self.follow(begun).await,
            Some(Err(error)) => Err(error),
            None => self.read().await,
        };
        let (transfer, shard) = (self.transfer, self.shard);
        report(&self.events, Event::ReadEnded { transfer, shard, answer }).await;
    }

    async fn read(&self) -> Result<ReadEnd, ReadError> {
        if let Some(hold) = self.hold {
            tokio::select! {
                () = tokio::time::sleep(hold) => {}
                () = self.gave_up.cancelled() => {}
            }
        }
        let described = self.described()?;
        let turn = self.turn().await.ok_or(ReadError::GivenUp)?;
        self.follow(self.post(described, turn)).await
    }

    /// Waits, in order, for a place with the agent; none when the transfer is given up before.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            () = self.gave_up.cancelled() => None,
            turn = Arc::clone(&self.puller.turns).acquire_owned() => turn.ok(),
        }
    }

    fn post(&self, described: Described, turn: OwnedSemaphorePermit) -> Begun {
        let Described { read, pieces, planned } = described;
        let agent = read.peer.clone();
        Begun { reading: self.puller.fabric.read(read), agent, pieces, planned, turn }
    }

    async fn follow(&self, begun: Begun) -> Result<ReadEnd, ReadError> {
        // The turn is kept to the read's end: the agent refuses what it has no place for.
        let Begun { reading, agent, pieces, planned, turn: _turn } = begun;
        let posted = reading.posted.await.is_ok();
        let took = self.due.elapsed();
        if posted {
            let (transfer, shard) = (self.transfer.clone(), self.shard);
            report(&self.events, Event::Posted { transfer, shard, took }).await;
        }
        let done = reading.done.await.map_err(ReadError::Fabric)?;
        let ended = Instant::now();
        Ok(ReadEnd { waited: took.saturating_sub(done.post), done, agent, pieces, planned, ended })
    }

    fn described(&self) -> Result<Described, ReadError> {
        let planning = Instant::now();
        let (read, pieces) = self.descriptors()?;
        Ok(Described { read, pieces, planned: planning.elapsed() })
    }

    /// The read, and the kernel blocks in it.
    fn descriptors(&self) -> Result<(Read, u64), ReadError> {
        let peer = self.peer.shards.get(usize::from(self.shard.0)).ok_or(ReadError::Plan(PlanError::Regions))?;
        let plan = CopyPlan::new(&peer.layout, &self.blocks, &self.arena.layout, &self.slots);
        let plan = plan.map_err(ReadError::Plan)?;
        let base = self.puller.region.base();
        let local = plan.runs.iter().map(|run| (run.destination.saturating_sub(base), run.len));
        let local = LocalDescs::new(&self.puller.region, local).map_err(ReadError::Descs)?;
        let remote = plan.runs.iter().map(|run| (run.source, run.len));
        let remote = RemoteDescs::new(&peer.memory, remote).map_err(ReadError::Descs)?;
        Ok((Read { peer: peer.agent.clone(), local, remote, notify: None }, plan.pieces))
    }
}

/// A read that ended well.
#[derive(Debug)]
pub(crate) struct ReadEnd {
    /// What the agent says of it; its wire time begins with the post.
    pub done: ReadDone,
    /// From the read being due to the start of its post.
    pub waited: Duration,
    /// Whose memory was read.
    pub agent: AgentName,
    /// Kernel blocks, before neighbours were merged.
    pub pieces: u64,
    /// Making the descriptors.
    pub planned: Duration,
    /// When its end was known.
    pub ended: Instant,
}

/// Asks a peer.
pub(crate) async fn shake_hands(handshake: Handshake, events: mpsc::Sender<Event>) {
    let (engine, asked) = (handshake.engine.clone(), handshake.asked.clone());
    let (endpoint, begun) = (handshake.endpoint.clone(), Instant::now());
    let answer = handshake.run().await.map(Arc::new);
    let answered = PeerAnswer { answer, endpoint, took: begun.elapsed() };
    report(&events, Event::Peer { asked, engine, answered }).await;
}

/// How a handshake ended.
#[derive(Debug)]
pub(crate) struct PeerAnswer {
    /// The peer, or why there is none.
    pub answer: Result<Arc<Peer>, TransferError>,
    /// Who was asked.
    pub endpoint: Endpoint,
    /// How long it took.
    pub took: Duration,
}

/// Spoils what has landed, as an injected fault.
pub(crate) type Spoiling = (Spoil, Vec<Arena>, Arc<SlotAssignment>);

/// Compares what landed with the source, if that is asked for, and puts the receipt on record.
pub(crate) async fn verify(
    landed: Arc<Landed>,
    receipts: Arc<dyn ReceiptSink>,
    (spoil, comparison): (Option<Spoiling>, Option<Comparison>),
    events: mpsc::Sender<Event>,
) {
    let transfer = landed.transfer.clone();
    let compared = compare(spoil, comparison).await;
    if matches!(compared, Compared::Agrees(_)) {
        match tokio::time::timeout(RECORD_WITHIN, receipts.record(Arc::clone(&landed))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, transfer_id = %transfer, "receipt not put on record"),
            Err(error) => tracing::error!(%error, transfer_id = %transfer, "receipt not put on record in time"),
        }
    }
    report(&events, Event::Verified { landed, compared }).await;
}

/// Puts on record that a receipt has not been given.
pub(crate) async fn withdraw(landed: Arc<Landed>, receipts: Arc<dyn ReceiptSink>) {
    let transfer = landed.transfer.clone();
    if let Err(error) = receipts.withdraw(landed).await {
        tracing::error!(%error, transfer_id = %transfer, "receipt not withdrawn");
    }
}

async fn compare(spoil: Option<Spoiling>, comparison: Option<Comparison>) -> Compared {
    // A fault may take its time.
    let spoiling = if spoil.is_some() { u64::MAX } else { 0 };
    let bytes = comparison.as_ref().map_or(0, Comparison::bytes).max(spoiling);
    let work = bulk::over(bytes, move || {
        if let Some(spoil) = &spoil {
            spoilt(spoil);
        }
        let Some(comparison) = comparison else { return Compared::Agrees(None) };
        let begun = Instant::now();
        match comparison.make() {
            Ok(Ok(())) => Compared::Agrees(Some(begun.elapsed())),
            Ok(Err(differs)) => Compared::Differs(differs),
            Err(error) => {
                tracing::error!(%error, "what landed could not be compared");
                Compared::Failed
            }
        }
    });
    work.await.unwrap_or(Compared::Failed)
}

fn spoilt((how, arenas, slots): &Spoiling) {
    for (arena, slots) in arenas.iter().flat_map(|arena| slots.groups().iter().map(move |slots| (arena, slots))) {
        let spoilt = match how {
            Spoil::Flip => arena.flip(slots),
            Spoil::Zero => arena.zero(slots),
        };
        if let Err(error) = spoilt {
            tracing::error!(%error, "fault injection failed");
        }
    }
}

/// Zeroes slots before they are free.
pub(crate) async fn zero(session: EngineId, arenas: Vec<Arena>, slots: SlotSet, events: mpsc::Sender<Event>) {
    let slot = arenas.iter().map(|arena| arena.layout.slot_bytes()).sum::<u64>();
    let bytes = slot.saturating_mul(u64::try_from(slots.ids().len()).unwrap_or(u64::MAX));
    let bytes = arenas.iter().map(|arena| arena.work(bytes)).max().unwrap_or(bytes);
    let work = bulk::over(bytes, move || {
        let mut clean = true;
        for arena in &arenas {
            if let Err(error) = arena.zero(slots.ids()) {
                tracing::error!(%error, "staging is not zeroed: it is given to nobody any more");
                clean = false;
            }
        }
        (slots, clean)
    });
    if let Ok((slots, clean)) = work.await {
        report(&events, Event::Zeroed { session, slots, clean }).await;
    }
}

/// Sends an event to the rank's task; it is gone only when the process ends.
pub(crate) async fn report(events: &mpsc::Sender<Event>, event: Event) {
    if events.send(event).await.is_err() {
        tracing::debug!("the rank's task has ended");
    }
}

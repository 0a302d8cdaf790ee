//! The contract between the sidecar's core ([`crate::pod`]) and its edge (HTTP, metrics, command line): plain data, no serde.
//!
//! Durations and instants are tokio's clock; ranks are global unless a name says `local`.

pub(crate) mod counters;
mod errors;
mod receipts;
mod timeline;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use kv::digest::Verify;
use kv::ids::{AttemptId, DpRank, EngineId, EngineRequestId, LocalRank, TransferId};
use kv::layout::KvLayout;
use side_channel::Endpoint;
use telemetry::trace::{Context, Received};
use tokio::time::Instant;
use vllm_wire::params::KvTransferParams;

pub use counters::{Counters, DurationHistogram, Ended, RankStages, StageHistograms};
pub use kv::readiness::RankState;
pub use vllm_wire::metrics::RankLoad;

pub use receipts::{NoReceiptSink, ReceiptSink, Recorded};

pub use timeline::{Contact, DigestFacts, QueuedBehind, ReadFacts, ShardRead, Span};

pub use errors::{Code, HandleError, HandshakeRefusal, ParamsProblem, Retry, StartError, TransferError};

/// What the pod's engines do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Produces KV: the sidecar tracks handles and leases.
    Prefill,
    /// Consumes KV: the sidecar stages it.
    Decode,
}

impl Role {
    /// The word of the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Where staging arenas lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StagingKind {
    /// Host memory, huge pages when the kernel gives them.
    Dram,
    /// Page-locked host memory (not built yet).
    Pinned,
    /// GPU memory (not built yet).
    Vram,
}

/// How landed bytes are spoilt by a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// Every bit is flipped.
    Flip,
    /// Every byte becomes 0, as if nothing had been read.
    Zero,
}

/// Faults for controls and tests; all off in production.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// What becomes of the bytes that have landed, before the receipt.
    pub spoil: Option<Spoil>,
    /// Waits this long before each READ is posted.
    pub hold_pull: Option<Duration>,
    /// Sends no heartbeats to P.
    pub no_heartbeat: bool,
    /// Makes one peer's wire slow.
    pub slow_wire: Option<SlowWire>,
}

/// A peer whose bytes start to move late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowWire {
    /// The port of its side channel.
    pub port: u16,
    /// How late.
    pub delay: Duration,
}

/// What a pod is told at start.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// What its engines do.
    pub role: Role,
    /// The engine's HTTP address.
    pub engine: http::Uri,
    /// The engine's side channel; the port is that of *global* rank 0 as vLLM counts (`base + global rank`).
    pub engine_side_channel: Endpoint,
    /// Where local rank 0 of the virtual engine listens; local rank `n` gets `port + n`, port 0 means any free one.
    pub side_channel_listen: Endpoint,
    /// The host under which D reaches the virtual engine (`remote_host`).
    pub advertise_host: String,
    /// DP ranks in this pod.
    pub dp_size: u16,
    /// TP shards of each rank.
    pub tp_size: u16,
    /// Global rank of local rank 0.
    pub rank_offset: u16,
    /// Where staging lies.
    pub staging: StagingKind,
    /// Bytes of staging for each rank (over all its TP shards).
    pub staging_bytes: u64,
    /// How long a transfer waits in line for staging.
    pub staging_wait: Duration,
    /// P's lease on finished blocks; it is not on the wire.
    pub kv_lease: Duration,
    /// How much of what lands is compared with the source (decode role).
    pub verify: Verify,
    /// Zero slots when they are freed.
    pub zero_on_release: bool,
    /// Injected faults.
    pub faults: Faults,
}

/// A request to pull one prefill's KV into staging.
#[derive(Clone, Debug)]
pub struct StartTransfer {
    /// The router's key of this attempt.
    pub attempt: AttemptId,
    /// The client-facing id; a label only.
    pub request_label: String,
    /// The rank that will decode (global).
    pub dp_rank: DpRank,
    /// P's parameters.
    pub params: KvTransferParams,
    /// When the router stops waiting.
    pub deadline: Instant,
    /// P's lease as the router knows it; the pod's configured one otherwise.
    pub lease: Option<Duration>,
    /// How long ago P had certainly not finished yet: the lease is counted from there.
    pub prefill_done_age: Duration,
    /// The span that asks.
    pub trace: Option<Context>,
    /// Compares more than the pod does by itself; less counts for nothing.
    pub verify: Verify,
    /// The sidecar of P's pod: whom to ask for digests.
    pub source_sidecar: Option<http::Uri>,
}

/// A good end: the bytes are in staging and the virtual engine serves them.
#[derive(Clone, Debug)]
pub struct Landed {
    /// Which transfer.
    pub transfer: TransferId,
    /// The router's key of the attempt.
    pub attempt: AttemptId,
    /// The proof.
    pub receipt: Receipt,
    /// What D is to be sent.
    pub params: KvTransferParams,
}

/// The proof that one request's KV has arrived for one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// The rank it arrived for (global).
    pub dp_rank: DpRank,
    /// D's engine of that rank.
    pub engine_id: EngineId,
    /// The virtual prefill engine that serves it.
    pub virtual_engine_id: EngineId,
    /// P's engine.
    pub source_engine_id: EngineId,
    /// The virtual engine's request id: what D will send back when it has collected.
    pub request_id: EngineRequestId,
    /// Logical blocks, all groups.
    pub blocks: u32,
    /// Bytes moved, all TP shards.
    pub bytes: u64,
    /// Where the time went.
    pub stages: Stages,
    /// What was left of P's lease when the bytes had landed.
    pub source_lease_left: Duration,
    /// How long the landed slots are kept without a claim being renewed.
    pub collect_by: Duration,
    /// What was compared with the source, if anything was.
    pub digest: Option<ReceiptDigest>,
}

/// What was compared with the source before a receipt was given, and is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptDigest {
    /// How much was to be compared.
    pub verify: Verify,
    /// Logical blocks.
    pub blocks: u32,
    /// Bytes, all TP shards.
    pub bytes: u64,
    /// XXH64 over all pages' digests (little-endian), shard by shard.
    pub value: u64,
}

/// Time spent per stage; `None` where the transfer has not got that far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Waiting for staging.
    pub queued: Option<Duration>,
    /// Asking P's side channel; zero when the peer is known.
    pub handshake: Option<Duration>,
    /// From the read being due to the start of NIXL's post call: planning, and the agent's other reads (the slowest shard). While the
    /// read goes on, to the end of that call.
    pub post: Option<Duration>,
    /// From the start of the post to the last byte (the slowest shard).
    pub wire: Option<Duration>,
    /// Checks between the last byte and the receipt: waiting for the source's digests, comparing, putting on record.
    pub verify: Option<Duration>,
    /// From the receipt to D's first sign of collecting.
    pub landed_idle: Option<Duration>,
    /// From D's first sign to its last shard's notification.
    pub collect: Option<Duration>,
}

impl Stages {
    /// Stage names (the same words everywhere) with their times, in order.
    pub fn named(&self) -> [(&'static str, Option<Duration>); 7] {
        [
            ("queued", self.queued),
            ("handshake", self.handshake),
            ("post", self.post),
            ("wire", self.wire),
            ("verify", self.verify),
            ("landed_idle", self.landed_idle),
            ("collect", self.collect),
        ]
    }
}

/// Where a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransferPhase {
    /// Waiting for staging.
    Queued,
    /// Asking P's side channel.
    Handshaking,
    /// The read is on its way to NIXL.
    Prepared,
    /// The NIC may be writing.
    InFlight,
    /// The bytes are here and being checked.
    Verifying,
    /// Not wanted any more, but the NIC may still write.
    Quiescing,
    /// In staging, receipt given, not yet collected.
    Landed,
    /// Collected, or given up after landing: the slots are free.
    Done,
    /// Ended without a receipt.
    Failed,
}

impl TransferPhase {
    /// All phases in order.
    pub const ALL: [Self; 9] = [
        Self::Queued,
        Self::Handshaking,
        Self::Prepared,
        Self::InFlight,
        Self::Verifying,
        Self::Quiescing,
        Self::Landed,
        Self::Done,
        Self::Failed,
    ];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Handshaking => "handshaking",
            Self::Prepared => "prepared",
            Self::InFlight => "in_flight",
            Self::Verifying => "verifying",
            Self::Quiescing => "quiescing",
            Self::Landed => "landed",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    /// The phase of the API's word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word)
    }

    /// Whether a receipt has been given or refused: what a long poll waits for.
    pub fn is_settled(self) -> bool {
        match self {
            Self::Landed | Self::Done | Self::Failed => true,
            Self::Queued | Self::Handshaking | Self::Prepared | Self::InFlight | Self::Verifying | Self::Quiescing => {
                false
            }
        }
    }
}

/// Why a transfer ended without a receipt, for the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferFailure {
    /// The stable code.
    pub code: Code,
    /// In words, causes included.
    pub detail: String,
}

/// A transfer as the API shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct TransferSnapshot {
    /// Which.
    pub transfer: TransferId,
    /// The router's key.
    pub attempt: AttemptId,
    /// The label.
    pub request_label: String,
    /// The rank it was asked for (global).
    pub dp_rank: DpRank,
    /// Where it is.
    pub state: TransferPhase,
    /// Logical blocks, all groups.
    pub blocks: u32,
    /// Bytes, all TP shards; 0 until known.
    pub bytes: u64,
    /// Where the time went; of a failed one up to its failure.
    pub stages: Stages,
    /// When each stage began, as offsets from `started`.
    pub starts: Stages,
    /// What is known about the source and the read.
    pub read: Arc<ReadFacts>,
    /// P's engine.
    pub source_engine: EngineId,
    /// P's request.
    pub source_request: EngineRequestId,
    /// The virtual engine's request id, once there is one.
    pub virtual_request: Option<EngineRequestId>,
    /// The rank whose engine collected it (global).
    pub collected_by: Option<DpRank>,
    /// What freed its slots, once they are free. Only `Collected` says that D has read them while they were its.
    pub freed: Option<Freed>,
    /// Why it failed.
    pub failure: Option<TransferFailure>,
    /// When it was asked for.
    pub started: Instant,
    /// Its span, and the one that asked.
    pub trace: Option<Received>,
}

/// What freed the slots of a transfer that had landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// The rank that they were for has read them.
    Collected,
    /// The router's decode leg ended and the engine fell silent.
    Finished,
    /// Neither router nor engine wanted them any more.
    Lapsed,
    /// The engine that they were for is gone.
    EngineGone,
}

impl Freed {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Collected, Self::Finished, Self::Lapsed, Self::EngineGone];

    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Collected => "collected",
            Self::Finished => "finished",
            Self::Lapsed => "lapsed",
            Self::EngineGone => "engine_gone",
        }
    }
}

impl From<kv::collect::How> for Freed {
    fn from(how: kv::collect::How) -> Self {
        match how {
            kv::collect::How::Collected => Self::Collected,
            kv::collect::How::Finished => Self::Finished,
            kv::collect::How::Lapsed => Self::Lapsed,
        }
    }
}

impl TransferSnapshot {
    /// Time from the request to the receipt (or as far as it got): the sum of the stages before `landed_idle`.
    pub fn total(&self) -> Duration {
        self.stages.named().into_iter().take(5).filter_map(|(_, time)| time).sum()
    }
}

/// Which transfers to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferFilter {
    /// Only in this state.
    pub state: Option<TransferPhase>,
    /// Only of this rank (global).
    pub dp_rank: Option<DpRank>,
    /// Only this attempt's: a router that got no transfer's name asks so.
    pub attempt: Option<AttemptId>,
    /// The slowest so many instead of the newest first.
    pub slowest: Option<usize>,
}

/// A rank's staging in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagingFigures {
    /// Slots in all.
    pub capacity_blocks: u32,
    /// Slots held by transfers, waiting to be collected or being zeroed.
    pub used_blocks: u32,
    /// Those of them that are being zeroed before they are free: no handle has them any more.
    pub zeroing_blocks: u32,
    /// Slots that hardware may still write to.
    pub quarantined_blocks: u32,
    /// Bytes of one slot, all TP shards.
    pub block_bytes: u64,
}

/// A rank as the API shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct RankSnapshot {
    /// Global.
    pub dp_rank: DpRank,
    /// Within this pod.
    pub local_rank: LocalRank,
    /// Whether it can take work.
    pub state: RankState,
    /// Why it is not simply ready, in words.
    pub reasons: Vec<String>,
    /// The engine's id, once its side channel has told it.
    pub engine_id: Option<EngineId>,
    /// The engine's version.
    pub engine_version: Option<String>,
    /// The engine's compatibility hash: P and D must have the same.
    pub compatibility_hash: Option<String>,
    /// The virtual prefill engine's id (decode role).
    pub virtual_engine_id: Option<EngineId>,
    /// Where the virtual engine listens (decode role).
    pub side_channel: Option<Endpoint>,
    /// The engine's geometry (TP shard 0).
    pub layout: Option<Arc<KvLayout>>,
    /// TP shards.
    pub tp_size: u16,
    /// What the engine says of its own load and of NIXL; zeros before its first word.
    pub load: RankLoad,
    /// Staging (decode role; zeros otherwise).
    pub staging: StagingFigures,
    /// Transfers without an end yet.
    pub in_flight: u32,
    /// Handles alive: pinned in the engine (P) or landed in staging (D).
    pub handles: u32,
    /// Those of D whose decode leg may still be open: what a drain waits for.
    pub awaited: u32,
    /// No new work is taken.
    pub draining: bool,
}

/// What the router tells about a finished prefill.
#[derive(Clone, Debug)]
pub struct ReportHandle {
    /// P's rank (global).
    pub dp_rank: DpRank,
    /// P's parameters, as the engine gave them.
    pub params: KvTransferParams,
    /// P's lease; the configured one otherwise.
    pub lease: Option<Duration>,
    /// How long ago P had certainly not finished yet.
    pub age: Duration,
}

/// Why a prefill's handle is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetGo {
    /// Nobody will read its blocks: the engine is to be told.
    Abandoned,
    /// They have been read, and who read them has told the engine.
    Read,
}

/// Where a handle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleState {
    /// P: pinned in the engine, as far as anyone said.
    Pinned,
    /// P: its lease is over by our count and nobody has said that it was read or given up.
    Leaked,
    /// P: the engine was told that nobody will read it.
    Released,
    /// D: in staging, being read into.
    Filling,
    /// D: in staging, not wanted any more, but hardware may still write to it.
    Quiescing,
    /// D: in staging, waiting to be collected.
    Landed,
    /// D: in staging, its decode leg has ended, for a quiet period.
    Ending,
}

impl HandleState {
    /// All states.
    pub const ALL: [Self; 7] =
        [Self::Pinned, Self::Leaked, Self::Released, Self::Filling, Self::Quiescing, Self::Landed, Self::Ending];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Leaked => "leaked",
            Self::Released => "released",
            Self::Filling => "filling",
            Self::Quiescing => "quiescing",
            Self::Landed => "landed",
            Self::Ending => "ending",
        }
    }
}

/// Blocks that are held for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandleSnapshot {
    /// The rank that holds them (global).
    pub dp_rank: DpRank,
    /// The engine (P's own, or the virtual one of D's sidecar).
    pub engine_id: EngineId,
    /// The request by which that engine knows them.
    pub request_id: EngineRequestId,
    /// Logical blocks.
    pub blocks: u32,
    /// P: the engine's blocks, per group in prompt order. D: the slots, ascending. None where there were too many to keep.
    pub block_ids: Option<Arc<[Vec<u32>]>>,
    /// Bytes, all TP shards; 0 when the geometry is unknown.
    pub bytes: u64,
    /// P, and D until it has landed: what is left of P's lease. D from then on: what is left of the claim.
    pub lease_left: Duration,
    /// D: which transfer holds them.
    pub transfer: Option<TransferId>,
    /// Where it is.
    pub state: HandleState,
}

/// A rank's handles and its staging, both of the same moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankHandles {
    /// Which (global).
    pub dp_rank: DpRank,
    /// Handles alive or recently ended, by request id.
    pub handles: Vec<HandleSnapshot>,
    /// Staging (decode role; zeros otherwise).
    pub staging: StagingFigures,
}

/// How a shutdown ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutDown {
    /// Everything ended by itself.
    Drained,
    /// Work was cut off, all memory is quiet.
    Stopped,
    /// Hardware may still write: memory stays pinned until the process ends.
    Stuck,
}

//! Transfers: what is asked for, and how one stands.

use std::sync::Arc;
use std::time::Duration;

use kv::digest::Verify;
use kv::ids::{AttemptId, DpRank, EngineId, EngineRequestId, TransferId};
use telemetry::trace::{Context, Received};
use tokio::time::Instant;
use vllm_wire::params::KvTransferParams;

use super::{Code, ReadFacts, Stages};

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

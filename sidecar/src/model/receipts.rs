//! Receipts: what they say, and where they are put on record.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kv::digest::Verify;
use kv::ids::{AttemptId, DpRank, EngineId, EngineRequestId, TransferId};
use vllm_wire::params::KvTransferParams;

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
    /// P's name for the request whose blocks were read.
    pub source_request: EngineRequestId,
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

/// A record being made, also when this is dropped.
pub type Recorded = BoxFuture<'static, io::Result<()>>;

/// Where receipts are put on record before they are answered.
pub trait ReceiptSink: Debug + Send + Sync + 'static {
    /// Writes one receipt.
    ///
    /// # Errors
    /// Whatever the file said; the receipt is given all the same, and the error logged.
    fn record(&self, landed: Arc<Landed>) -> Recorded;

    /// Writes that a receipt that was put on record has not been given: its transfer ended otherwise in that moment.
    ///
    /// # Errors
    /// Whatever the file said; it is logged.
    fn withdraw(&self, landed: Arc<Landed>) -> Recorded;

    /// Whether [`Self::record`] does anything: where it does not, no task is made for it.
    fn keeps(&self) -> bool;
}

/// A sink that keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReceiptSink;

impl ReceiptSink for NoReceiptSink {
    fn record(&self, _landed: Arc<Landed>) -> Recorded {
        Box::pin(async { Ok(()) })
    }

    fn withdraw(&self, _landed: Arc<Landed>) -> Recorded {
        Box::pin(async { Ok(()) })
    }

    fn keeps(&self) -> bool {
        false
    }
}

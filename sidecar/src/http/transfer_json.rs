//! Transfers as JSON.

use std::time::Duration;

use kv::digest::ALGORITHM;
use kv::ids::{AttemptId, DpRank};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use telemetry::trace::Context;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::config::parse;
use crate::http::input;
use crate::http::openapi::schemas::{self, KvTransferParamsJson, StagesUs};
use crate::latency::{Why, micros};
use crate::model::{Freed, Landed, ReadFacts, Receipt, ShardRead, Span, Stages, StartTransfer, TransferSnapshot};
use crate::problem::Problem;

/// One prefill's KV for one rank. Members that are not named here are ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct StartBody {
    /// The router's key: the same one for the same prefill and rank is the same transfer
    #[schema(min_length = 1, max_length = 256, pattern = "^[!-~]+$")]
    attempt_id: String,
    /// A label for logs and lists
    #[schema(min_length = 1, max_length = 256, pattern = "^[!-~]+$")]
    request_id: String,
    /// The rank that will decode (global)
    #[schema(maximum = 65535)]
    dp_rank: u16,
    /// What the prefill answered
    #[schema(value_type = KvTransferParamsJson)]
    kv_transfer_params: Box<RawValue>,
    /// The transfer is given up after this time
    #[schema(minimum = 1, maximum = 86_400_000)]
    deadline_ms: u64,
    /// The prefill engine's lease, when it is not --kv-lease
    #[serde(default)]
    #[schema(minimum = 1, maximum = 86_400_000)]
    lease_ms: Option<u64>,
    /// Time since the prefill was answered
    #[schema(maximum = 86_400_000)]
    prefill_done_age_ms: u64,
    /// Compare more with the source than --verify says: `off`, `sample:K` or `full`
    #[serde(default)]
    #[schema(pattern = "^(off|full|sample:([2-9]|[1-9][0-9]{1,8}))$")]
    verify: Option<String>,
    /// The sidecar of the prefill's pod, `http://HOST:PORT` or https: whom to ask for digests
    #[serde(default)]
    #[schema(pattern = "^http://[A-Za-z0-9.-]+(:[0-9]{1,5})?/?$")]
    source_sidecar: Option<String>,
}

impl StartBody {
    /// Checks every member; the deadline counts from `now`.
    pub(super) fn into_start(self, now: Instant, trace: Option<Context>) -> Result<StartTransfer, Problem> {
        Ok(StartTransfer {
            attempt: AttemptId::new(input::id("attempt_id", &self.attempt_id)?.to_owned()),
            request_label: input::id("request_id", &self.request_id)?.to_owned(),
            dp_rank: DpRank(self.dp_rank),
            params: input::params(&self.kv_transfer_params)?,
            deadline: now + input::some_milliseconds("deadline_ms", self.deadline_ms)?,
            lease: self.lease_ms.map(|lease| input::some_milliseconds("lease_ms", lease)).transpose()?,
            prefill_done_age: input::milliseconds("prefill_done_age_ms", self.prefill_done_age_ms)?,
            trace,
            verify: self.verify.as_deref().map(input::verify).transpose()?.unwrap_or_default(),
            source_sidecar: self.source_sidecar.as_deref().map(input::sidecar).transpose()?,
        })
    }
}

/// The answer to a transfer that has landed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LandedJson {
    transfer_id: String,
    receipt: ReceiptJson,
    /// What the decode engine is to be told
    #[schema(value_type = KvTransferParamsJson)]
    kv_transfer_params: Value,
}

/// That the KV of one request lies in one rank's staging.
#[derive(Debug, Serialize, ToSchema)]
struct ReceiptJson {
    dp_rank: u16,
    engine_id: String,
    virtual_engine_id: String,
    source_engine_id: String,
    request_id: String,
    blocks: u32,
    bytes: u64,
    stages_us: StagesUs,
    source_lease_left_ms: u64,
    collect_by_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<DigestJson>,
}

/// What was compared with the source, and is equal.
#[derive(Debug, Serialize, ToSchema)]
struct DigestJson {
    /// `xxh64-4k`
    algorithm: &'static str,
    /// How much was to be compared: `sample:K` or `full`
    verify: String,
    blocks: u32,
    bytes: u64,
    /// XXH64 over all digests, 16 hexadecimal digits
    value: String,
}

impl From<&Landed> for LandedJson {
    fn from(landed: &Landed) -> Self {
        Self {
            transfer_id: landed.transfer.as_str().to_owned(),
            receipt: ReceiptJson::from(&landed.receipt),
            kv_transfer_params: landed.params.to_value(),
        }
    }
}

impl From<&Receipt> for ReceiptJson {
    fn from(receipt: &Receipt) -> Self {
        Self {
            dp_rank: receipt.dp_rank.0,
            engine_id: receipt.engine_id.as_str().to_owned(),
            virtual_engine_id: receipt.virtual_engine_id.as_str().to_owned(),
            source_engine_id: receipt.source_engine_id.as_str().to_owned(),
            request_id: receipt.request_id.as_str().to_owned(),
            blocks: receipt.blocks,
            bytes: receipt.bytes,
            stages_us: stages_us(&receipt.stages),
            source_lease_left_ms: whole_ms(receipt.source_lease_left),
            collect_by_ms: whole_ms(receipt.collect_by),
            digest: receipt.digest.map(|digest| DigestJson {
                algorithm: ALGORITHM,
                verify: parse::verify_word(digest.verify),
                blocks: digest.blocks,
                bytes: digest.bytes,
                value: format!("{:016x}", digest.value),
            }),
        }
    }
}

/// A transfer as it stands.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TransferJson {
    transfer_id: String,
    attempt_id: String,
    request_id: String,
    dp_rank: u16,
    #[schema(schema_with = schemas::phase)]
    state: &'static str,
    blocks: u32,
    bytes: u64,
    stages_us: StagesUs,
    timeline: Vec<SpanJson>,
    total_us: u64,
    age_ms: u64,
    source: SourceJson,
    read: ReadJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<WhyJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collected_by: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::freed)]
    freed: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<FailureJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<ReceiptJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<KvTransferParamsJson>)]
    kv_transfer_params: Option<Value>,
}

/// Where the KV comes from.
#[derive(Debug, Serialize, ToSchema)]
struct SourceJson {
    engine_id: String,
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[schema(schema_with = schemas::contact)]
    contact: &'static str,
}

/// One stage: offsets from the request on the monotonic clock.
#[derive(Debug, Serialize, ToSchema)]
struct SpanJson {
    #[schema(schema_with = schemas::stage)]
    stage: &'static str,
    start_us: u64,
    duration_us: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    running: bool,
}

/// What is known of the read.
#[derive(Debug, Serialize, ToSchema)]
struct ReadJson {
    descriptors: u64,
    pieces: u64,
    merged: bool,
    bytes: u64,
    shards: Vec<ShardJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digests: Option<DigestsShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queued_behind: Option<QueuedJson>,
}

/// The read of one TP shard; times are offsets or durations in microseconds.
#[derive(Debug, Serialize, ToSchema)]
struct ShardJson {
    tp_rank: u16,
    agent: String,
    descriptors: u64,
    pieces: u64,
    bytes: u64,
    planned_us: u64,
    start_us: u64,
    post_call_us: u64,
    wire_us: u64,
}

/// Staging as it was when the transfer had to wait in line for it.
#[derive(Debug, Serialize, ToSchema)]
struct QueuedJson {
    needed_blocks: u32,
    free_blocks: u32,
    capacity_blocks: u32,
    transfers_ahead: u32,
}

/// What is known of the comparison with the source.
#[derive(Debug, Serialize, ToSchema)]
struct DigestsShown {
    blocks: u32,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compare_us: Option<u64>,
}

/// Why it took as long as it did.
#[derive(Debug, Serialize, ToSchema)]
struct WhyJson {
    #[schema(schema_with = schemas::stage)]
    stage: &'static str,
    took_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_median_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    others_median_us: Option<u64>,
    text: String,
}

impl From<&ReadFacts> for ReadJson {
    fn from(read: &ReadFacts) -> Self {
        let shard = |shard: &ShardRead| ShardJson {
            tp_rank: shard.shard.0,
            agent: shard.agent.as_str().to_owned(),
            descriptors: shard.descriptors,
            pieces: shard.pieces,
            bytes: shard.bytes,
            planned_us: micros(shard.planned),
            start_us: micros(shard.start),
            post_call_us: micros(shard.post_call),
            wire_us: micros(shard.wire),
        };
        Self {
            descriptors: read.descriptors(),
            pieces: read.pieces(),
            merged: read.descriptors() < read.pieces(),
            bytes: read.bytes(),
            shards: read.shards.iter().map(shard).collect(),
            digests: read.digests.map(|digests| DigestsShown {
                blocks: digests.blocks,
                bytes: digests.bytes,
                source_us: digests.source.map(micros),
                compare_us: digests.compared.map(micros),
            }),
            queued_behind: read.queued_behind.map(|behind| QueuedJson {
                needed_blocks: behind.needed,
                free_blocks: behind.free,
                capacity_blocks: behind.capacity,
                transfers_ahead: behind.ahead,
            }),
        }
    }
}

impl From<Why> for WhyJson {
    fn from(why: Why) -> Self {
        Self {
            stage: why.stage,
            took_us: micros(why.took),
            peer_median_us: why.peer_median.map(micros),
            others_median_us: why.others_median.map(micros),
            text: why.text,
        }
    }
}

/// Why there is no receipt.
#[derive(Debug, Serialize, ToSchema)]
struct FailureJson {
    #[schema(schema_with = schemas::code)]
    code: &'static str,
    detail: String,
    #[schema(schema_with = schemas::retry)]
    retry: &'static str,
}

impl TransferJson {
    /// A transfer that was looked at at `now`.
    pub(super) fn new(snapshot: &TransferSnapshot, now: Instant) -> Self {
        Self {
            transfer_id: snapshot.transfer.as_str().to_owned(),
            attempt_id: snapshot.attempt.as_str().to_owned(),
            request_id: snapshot.request_label.clone(),
            dp_rank: snapshot.dp_rank.0,
            state: snapshot.state.as_str(),
            blocks: snapshot.blocks,
            bytes: snapshot.bytes,
            stages_us: stages_us(&snapshot.stages),
            timeline: snapshot.timeline(now).iter().map(SpanJson::from).collect(),
            total_us: micros(snapshot.total_so_far(now)),
            age_ms: whole_ms(now.saturating_duration_since(snapshot.started)),
            source: SourceJson {
                engine_id: snapshot.source_engine.as_str().to_owned(),
                request_id: snapshot.source_request.as_str().to_owned(),
                address: snapshot.read.address.as_ref().map(ToString::to_string),
                contact: snapshot.read.contact.as_str(),
            },
            read: ReadJson::from(&*snapshot.read),
            why: None,
            virtual_request_id: snapshot.virtual_request.as_ref().map(|id| id.as_str().to_owned()),
            collected_by: snapshot.collected_by.map(|rank| rank.0),
            freed: snapshot.freed.map(Freed::as_str),
            failure: snapshot.failure.as_ref().map(|failure| FailureJson {
                code: failure.code.as_str(),
                detail: failure.detail.clone(),
                retry: failure.code.retry().as_str(),
            }),
            receipt: None,
            kv_transfer_params: None,
        }
    }

    /// Says why it took as long as it did.
    pub(super) fn with_why(mut self, why: Option<Why>) -> Self {
        self.why = why.map(WhyJson::from);
        self
    }

    /// What a client that did not wait needs to go on.
    pub(super) fn with_receipt(mut self, landed: &Landed) -> Self {
        self.receipt = Some(ReceiptJson::from(&landed.receipt));
        self.kv_transfer_params = Some(landed.params.to_value());
        self
    }
}

impl From<&Span> for SpanJson {
    fn from(span: &Span) -> Self {
        Self {
            stage: span.stage,
            start_us: micros(span.start),
            duration_us: micros(span.duration),
            running: span.running,
        }
    }
}

/// Only the stages that the transfer has got to, in their order.
fn stages_us(stages: &Stages) -> StagesUs {
    let reached = stages.named().into_iter().filter_map(|(name, time)| Some((name, time?)));
    StagesUs(reached.map(|(name, time)| (name.to_owned(), Value::from(micros(time)))).collect())
}

pub(super) fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

//! A transfer's timeline as Chrome trace events (the JSON that Perfetto and `chrome://tracing` open).
//!
//! The process is the DP rank; one thread has the stages, one more per TP shard its read. Times are microseconds since the sidecar's start,
//! so that the traces of several transfers fit together.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::http::openapi::schemas;
use crate::latency::micros;
use crate::model::TransferSnapshot;

/// The thread of the stages; TP shard `n` has the thread `n + 2`.
const STAGES: u32 = 1;

/// A file for Perfetto and `chrome://tracing`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TraceJson {
    display_time_unit: &'static str,
    trace_events: Vec<EventJson>,
    other_data: AboutJson,
}

/// One of Chrome's trace events: a name of a process or thread (`M`), or a complete event (`X`), which has `cat` and `dur`.
#[derive(Debug, Serialize, ToSchema)]
struct EventJson {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'static str>,
    ph: &'static str,
    /// The DP rank
    pid: u16,
    tid: u32,
    /// Microseconds since the sidecar's start
    ts: u64,
    /// Microseconds
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<u64>,
    args: ArgsJson,
}

/// A name's `name`, a stage's `running`, a read's facts; nothing for the call that posts it.
#[derive(Debug, Default, Serialize, ToSchema)]
struct ArgsJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    descriptors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pieces: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    planned_us: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
struct AboutJson {
    transfer_id: String,
    request_id: String,
    #[schema(schema_with = schemas::phase)]
    state: &'static str,
    source_engine_id: String,
    source_address: Option<String>,
    blocks: u32,
    bytes: u64,
}

/// The trace of one transfer as seen at `now`; times count from `epoch`.
pub(super) fn trace(transfer: &TransferSnapshot, epoch: Instant, now: Instant) -> TraceJson {
    let pid = transfer.dp_rank.0;
    let base = transfer.started.saturating_duration_since(epoch);
    let event = |name: &'static str, tid: u32, start: Duration, duration: Duration, args: ArgsJson| EventJson {
        name,
        cat: Some("kv_transfer"),
        ph: "X",
        pid,
        tid,
        ts: micros(base.saturating_add(start)),
        dur: Some(micros(duration)),
        args,
    };
    let mut events = vec![
        named("process_name", pid, STAGES, format!("kvgate sidecar, DP rank {pid}")),
        named("thread_name", pid, STAGES, format!("transfer {}", transfer.transfer)),
    ];
    for span in transfer.timeline(now) {
        let args = ArgsJson { running: Some(span.running), ..ArgsJson::default() };
        events.push(event(span.stage, STAGES, span.start, span.duration, args));
    }
    for shard in &transfer.read.shards {
        let tid = STAGES.saturating_add(1).saturating_add(shard.shard.0.into());
        events.push(named("thread_name", pid, tid, format!("TP shard {} from {}", shard.shard, shard.agent)));
        let args = ArgsJson {
            agent: Some(shard.agent.as_str().to_owned()),
            bytes: Some(shard.bytes),
            descriptors: Some(shard.descriptors),
            pieces: Some(shard.pieces),
            planned_us: Some(micros(shard.planned)),
            ..ArgsJson::default()
        };
        events.push(event("read", tid, shard.start, shard.wire, args));
        events.push(event("post call", tid, shard.start, shard.post_call, ArgsJson::default()));
    }
    TraceJson {
        display_time_unit: "ms",
        trace_events: events,
        other_data: AboutJson {
            transfer_id: transfer.transfer.as_str().to_owned(),
            request_id: transfer.request_label.clone(),
            state: transfer.state.as_str(),
            source_engine_id: transfer.source_engine.as_str().to_owned(),
            source_address: transfer.read.address.as_ref().map(ToString::to_string),
            blocks: transfer.blocks,
            bytes: transfer.bytes,
        },
    }
}

fn named(what: &'static str, pid: u16, tid: u32, name: String) -> EventJson {
    EventJson {
        name: what,
        cat: None,
        ph: "M",
        pid,
        tid,
        ts: 0,
        dur: None,
        args: ArgsJson { name: Some(name), ..ArgsJson::default() },
    }
}

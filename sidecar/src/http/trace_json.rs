//! A transfer's timeline as Chrome trace events (the JSON that Perfetto and `chrome://tracing` open).
//!
//! The process is the DP rank; one thread has the stages, one more per TP shard its read. Times are microseconds since the sidecar's start,
//! so that the traces of several transfers fit together.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::latency::micros;
use crate::model::TransferSnapshot;

/// The thread of the stages; TP shard `n` has the thread `n + 2`.
const STAGES: u32 = 1;

/// The trace of one transfer as seen at `now`; times count from `epoch`.
pub(super) fn trace(transfer: &TransferSnapshot, epoch: Instant, now: Instant) -> Value {
    let pid = transfer.dp_rank.0;
    let base = transfer.started.saturating_duration_since(epoch);
    let event = |name: &str, tid: u32, start: Duration, duration: Duration, args: Value| {
        json!({
            "name": name, "cat": "kv_transfer", "ph": "X", "pid": pid, "tid": tid,
            "ts": micros(base.saturating_add(start)), "dur": micros(duration), "args": args,
        })
    };
    let mut events = vec![
        named("process_name", pid, STAGES, &format!("kvgate sidecar, DP rank {pid}")),
        named("thread_name", pid, STAGES, &format!("transfer {}", transfer.transfer)),
    ];
    for span in transfer.timeline(now) {
        let args = json!({ "running": span.running });
        events.push(event(span.stage, STAGES, span.start, span.duration, args));
    }
    for shard in &transfer.read.shards {
        let tid = STAGES.saturating_add(1).saturating_add(shard.shard.0.into());
        events.push(named("thread_name", pid, tid, &format!("TP shard {} from {}", shard.shard, shard.agent)));
        let args = json!({
            "agent": shard.agent.as_str(), "bytes": shard.bytes, "descriptors": shard.descriptors,
            "pieces": shard.pieces, "planned_us": micros(shard.planned),
        });
        events.push(event("read", tid, shard.start, shard.wire, args));
        events.push(event("post call", tid, shard.start, shard.post_call, json!({})));
    }
    json!({
        "displayTimeUnit": "ms",
        "traceEvents": events,
        "otherData": {
            "transfer_id": transfer.transfer.as_str(),
            "request_id": transfer.request_label,
            "state": transfer.state.as_str(),
            "source_engine_id": transfer.source_engine.as_str(),
            "source_address": transfer.read.address.as_ref().map(ToString::to_string),
            "blocks": transfer.blocks,
            "bytes": transfer.bytes,
        },
    })
}

fn named(what: &str, pid: u16, tid: u32, name: &str) -> Value {
    json!({ "name": what, "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": { "name": name } })
}

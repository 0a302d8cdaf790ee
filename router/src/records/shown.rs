//! A record as JSON: one timeline over all parts, microseconds from the request's arrival.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Record;
use crate::sidecar::TransferStages;
use crate::targets::Target;
use crate::trail::{Attempt, Leg, Span, Trail};

/// What D's sidecar says of an attempt's transfer, by the attempt's number.
pub(super) type Said = (u32, Result<TransferStages, &'static str>);

/// Whether the reader may see addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses(pub(crate) bool);

/// A record with its timeline; with what sidecars say, where they were asked.
pub(super) fn shown(record: &Record, addresses: Addresses, said: &[Said]) -> Value {
    let trail = &record.trail;
    let said_of = |attempt: &Attempt| said.iter().find(|(number, _)| *number == attempt.number).map(|(_, said)| said);
    let mut timeline = Vec::new();
    let mut add = |leg: Leg, span: Span, more: Value| timeline.extend(part(leg, span, record.took, more));
    add(Leg::Body, trail.body, json!({}));
    add(Leg::Queue, trail.queue, json!({}));
    for attempt in &trail.tries {
        for (leg, span) in attempt.legs() {
            let target = match leg {
                Leg::Prefill => attempt.prefill_target.as_ref(),
                Leg::Transfer | Leg::Decode => attempt.decode_target.as_ref(),
                Leg::Body | Leg::Queue | Leg::Choice | Leg::Backoff | Leg::Stream => None,
            };
            let failed = attempt.failed.as_ref().is_some_and(|failed| failed.why.leg == leg);
            let target = target.map(|target| target.id().to_string());
            let stages = match said_of(attempt) {
                Some(Ok(stages)) if leg == Leg::Transfer => Some(stages_at(span, stages)),
                Some(_) | None => None,
            };
            add(leg, span, json!({ "attempt": attempt.number, "failed": failed, "target": target, "stages": stages }));
        }
    }
    add(Leg::Stream, trail.stream, json!({ "chunks": trail.chunks, "bytes": trail.bytes }));
    let attempts: Vec<Value> = trail.tries.iter().map(|one| attempt(one, trail, addresses, said_of(one))).collect();
    json!({
        "id": &*trail.id,
        "client_id": trail.client_id.as_deref(),
        "endpoint": trail.endpoint,
        "path": trail.path.as_str(),
        "local_because": trail.local_because,
        "outcome": record.outcome.as_str(),
        "status": trail.status.map(|status| status.as_u16()),
        "code": trail.code,
        "ttft_us": trail.stream.from.map(us),
        "total_us": us(record.took),
        "attempts_total": trail.attempts,
        "attempts": attempts,
        "timeline": timeline,
    })
}

fn part(leg: Leg, span: Span, end: Duration, more: Value) -> Option<Value> {
    let from = span.from?;
    // What was under way when the request ended, ended with it.
    let to = span.to.unwrap_or(end);
    let mut part = json!({
        "leg": leg.as_str(), "from_us": us(from), "to_us": us(to), "took_us": us(to.saturating_sub(from)),
        "complete": span.to.is_some(),
    });
    if let (Some(part), Value::Object(more)) = (part.as_object_mut(), more) {
        part.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Some(part)
}

/// The sidecar's stages on the router's clock. Only their lengths are known here: they are laid end to end, with what the sidecar does
/// not account for (the way there and back) in equal parts before and behind them.
fn stages_at(transfer: Span, stages: &TransferStages) -> Vec<Value> {
    let Some(from) = transfer.from else { return Vec::new() };
    let waited: Duration =
        stages.stages.iter().filter(|(name, _)| !is_after_landing(name)).map(|(_, took)| *took).sum();
    let rest = transfer.took().map_or(Duration::ZERO, |took| took.saturating_sub(waited));
    let mut at = from + rest / 2;
    let mut laid = Vec::with_capacity(stages.stages.len());
    for (name, took) in &stages.stages {
        laid.push(json!({ "stage": name, "from_us": us(at), "to_us": us(at + *took), "took_us": us(*took) }));
        at += *took;
    }
    laid
}

fn is_after_landing(stage: &str) -> bool {
    matches!(stage, "landed_idle" | "collect")
}

fn attempt(
    attempt: &Attempt,
    trail: &Trail,
    addresses: Addresses,
    said: Option<&Result<TransferStages, &'static str>>,
) -> Value {
    let mut shown = Map::new();
    let mut set = |name: &str, value: Value| drop(shown.insert(name.to_owned(), value));
    set("attempt", json!(attempt.number));
    set("id", json!(trail.attempt_id(attempt)));
    for (name, target) in [("prefill", &attempt.prefill_target), ("decode", &attempt.decode_target)] {
        if let Some(target) = target {
            set(name, json!(target.id().to_string()));
            if addresses.0 {
                set(&format!("{name}_engine"), json!(engine(target)));
            }
        }
    }
    if let Some(transfer) = &attempt.transfer_id {
        set("transfer_id", json!(transfer.as_str()));
    }
    match said {
        Some(Ok(stages)) => set("transfer", stages.shown(addresses.0)),
        Some(Err(code)) => set("transfer", json!({ "unknown_because": code })),
        None => {}
    }
    if let Some(failed) = &attempt.failed {
        let detail = addresses.0.then_some(&failed.detail);
        let why = json!({
            "leg": failed.why.leg.as_str(), "code": failed.why.code, "fault": failed.why.fault,
            "next": failed.why.next.as_str(), "at_us": us(failed.at),
            "detail": detail,
        });
        set("failed", why);
    }
    Value::Object(shown)
}

fn engine(target: &Target) -> String {
    format!("{}@{}", target.pod.engine, target.local)
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

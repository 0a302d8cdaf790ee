//! A transfer's record as spans (docs/tracing.md), made when it has ended: one `transfer`, and one for each stage that it got to.

use telemetry::trace::{Context, Kind, Received, Span};
use tokio::time::Instant;

use crate::model::{Contact, TransferSnapshot};

/// The spans of a transfer that has ended.
pub(crate) fn of(shown: &TransferSnapshot, now: Instant) -> Vec<Span> {
    let Some(Received { context, parent }) = shown.trace.filter(|trace| trace.context.sampled) else {
        return Vec::new();
    };
    let whole = Span::new(context, parent, "transfer", shown.started, now);
    let mut spans = vec![about(whole, shown)];
    for stage in shown.timeline(now) {
        let begin = shown.started + stage.start;
        // Asking a prefill engine's side channel is the one stage in which another process is spoken to by us.
        let asked = stage.stage == "handshake" && shown.read.contact == Contact::Asked;
        let name = if asked { "peer" } else { stage.stage };
        let span = Span::new(context.child(), Some(context.span_id), name, begin, begin + stage.duration);
        spans.push(if asked { peer(span, shown) } else { read(span, shown) });
    }
    spans
}

/// The context that a transfer goes on in: its own span's where spans are made, the asker's otherwise.
pub(crate) fn continued(asked: Option<Context>, made: bool) -> Option<Received> {
    let asked = asked?;
    let context = if made { asked.child() } else { asked };
    Some(Received { context, parent: Some(asked.span_id) })
}

fn about(span: Span, shown: &TransferSnapshot) -> Span {
    let failure = shown.failure.as_ref();
    span.text("transfer_id", shown.transfer.as_str().to_owned())
        .text("request_id", shown.request_label.clone())
        .text("attempt_id", shown.attempt.as_str().to_owned())
        .text("producer", shown.source_engine.as_str().to_owned())
        .number("dp_rank", shown.dp_rank.0)
        .number("blocks", shown.blocks)
        .number("bytes", shown.bytes)
        .text("state", shown.state.as_str())
        .maybe("freed", shown.freed.map(|freed| freed.as_str()))
        .text("outcome", failure.map_or("landed", |failure| failure.code.as_str()))
        .failed(failure.map(|failure| failure.code.as_str()))
}

fn peer(span: Span, shown: &TransferSnapshot) -> Span {
    span.kind(Kind::Client)
        .text("engine_id", shown.source_engine.as_str().to_owned())
        .maybe("address", shown.read.address.as_ref().map(ToString::to_string))
}

fn read(span: Span, shown: &TransferSnapshot) -> Span {
    if span.name != "wire" {
        return span;
    }
    span.number("descriptors", shown.read.descriptors()).number("bytes", shown.read.bytes())
}

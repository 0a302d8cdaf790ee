//! Spans as OTLP's message.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{
    self as wire, ResourceSpans, ScopeSpans, Status, span::SpanKind, status::StatusCode,
};
use prost::Message as _;
use tokio::time::Instant;

use super::Service;
use crate::trace::{Kind, Span, Value};

/// W3C's flags of a span that is recorded.
const SAMPLED: u32 = 1;

/// One message.
pub(super) fn encode(service: &Service, spans: &[Span]) -> Bytes {
    let clock = Clock::now();
    let resource = [
        ("service.name", &service.name),
        ("service.version", &service.version),
        ("service.instance.id", &service.instance),
    ];
    let attributes = resource.map(|(name, words)| pair(name, any_value::Value::StringValue(words.clone()))).into();
    let scope =
        InstrumentationScope { name: "kvgate".to_owned(), version: service.version.clone(), ..Default::default() };
    let spans = spans.iter().map(|span| encoded(span, &clock)).collect();
    let resource_spans = vec![ResourceSpans {
        resource: Some(Resource { attributes, ..Resource::default() }),
        scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

fn encoded(span: &Span, clock: &Clock) -> wire::Span {
    let kind = match span.kind {
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
        Kind::Internal => SpanKind::Internal,
    };
    let attributes = span.attributes.iter().map(|(name, value)| pair(name, said(value)));
    let status = span.error.as_ref().map(|code| Status { message: code.to_string(), code: StatusCode::Error.into() });
    wire::Span {
        trace_id: span.context.trace_id.to_be_bytes().into(),
        span_id: span.context.span_id.to_be_bytes().into(),
        parent_span_id: span.parent.map(|parent| parent.to_be_bytes().into()).unwrap_or_default(),
        flags: SAMPLED,
        name: span.name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: clock.unix_nanos(span.start),
        end_time_unix_nano: clock.unix_nanos(span.end),
        attributes: attributes.collect(),
        status,
        ..wire::Span::default()
    }
}

fn said(value: &Value) -> any_value::Value {
    match value {
        Value::Text(words) => any_value::Value::StringValue(words.to_string()),
        Value::Number(number) => any_value::Value::IntValue(i64::try_from(*number).unwrap_or(i64::MAX)),
        Value::Flag(flag) => any_value::Value::BoolValue(*flag),
    }
}

fn pair(name: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The wall clock beside tokio's, at one moment.
struct Clock {
    unix: Duration,
    monotonic: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "OTLP wants wall-clock times")]
    fn now() -> Self {
        Self { unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), monotonic: Instant::now() }
    }

    fn unix_nanos(&self, at: Instant) -> u64 {
        let ago = self.monotonic.saturating_duration_since(at);
        u64::try_from(self.unix.saturating_sub(ago).as_nanos()).unwrap_or(u64::MAX)
    }
}

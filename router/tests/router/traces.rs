//! Spans of requests, and what goes on from them.

#![expect(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm, reason = "a test fails by panicking")]

use http::HeaderMap;
use telemetry::trace::{Context, Kind, Span, Value};

use crate::engines::Prefills;
use crate::journal::Event;
use crate::sidecars::Transfers;
use crate::world::{Setup, World};

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    match named(spans, name).as_slice() {
        [one] => one,
        others => panic!("{} spans are named {name}", others.len()),
    }
}

fn said<'a>(span: &'a Span, attribute: &str) -> &'a Value {
    let found = span.attributes.iter().find(|(name, _)| *name == attribute);
    found.map(|(_, value)| value).unwrap_or_else(|| panic!("no {attribute} in {span:?}"))
}

fn text(words: &'static str) -> Value {
    Value::Text(words.into())
}

fn parents(headers: &[HeaderMap]) -> Vec<Context> {
    headers.iter().map(|headers| Context::parse(headers["traceparent"].to_str().unwrap()).unwrap()).collect()
}

/// What the engines of one side were sent.
fn sent(world: &World, decode: bool) -> Vec<HeaderMap> {
    let of = |event| match event {
        Event::Prefill { headers, .. } if !decode => Some(headers),
        Event::Decode { headers, .. } | Event::Other { headers, .. } if decode => Some(headers),
        _ => None,
    };
    world.journal.events().into_iter().filter_map(of).collect()
}

#[tokio::test]
async fn a_request_is_one_span_of_its_callers_trace_with_a_child_for_each_leg() {
    let world = World::new(Setup { traced: true, ..Setup::default() }).await;
    let body = r#"{"model":"m","prompt":"a secret","stream":true}"#;
    let answer = world.post("/v1/completions", body, &[("traceparent", CALLER), ("x-request-id", "mine")]).await;
    assert_eq!(answer.status.as_u16(), 200);
    let spans = world.spans().await;
    let caller = Context::parse(CALLER).unwrap();
    let request = only(&spans, "request");
    assert_eq!((request.parent, request.kind), (Some(caller.span_id), Kind::Server));
    for (name, value) in [("request_id", "mine"), ("model", "m"), ("path", "pd"), ("outcome", "ok")] {
        assert_eq!(said(request, name), &text(value));
    }
    assert_eq!((said(request, "stream"), said(request, "attempts")), (&Value::Flag(true), &Value::Number(1)));
    for leg in ["body", "queue", "choice", "prefill", "transfer", "decode", "stream"] {
        let span = only(&spans, leg);
        assert_eq!(span.parent, Some(request.context.span_id), "{leg}");
        assert!(span.start >= request.start && span.end <= request.end && span.error.is_none(), "{leg}");
    }
    let ids: std::collections::BTreeSet<u64> = spans.iter().map(|span| span.context.span_id).collect();
    assert_eq!(ids.len(), spans.len());
    assert!(spans.iter().all(|span| span.context.trace_id == caller.trace_id));
    assert!(!format!("{spans:?}").contains("secret"));

    // Engines and sidecars go on from the leg that they work on.
    let (prefill, transfer, decode) = (only(&spans, "prefill"), only(&spans, "transfer"), only(&spans, "decode"));
    assert_eq!(parents(&sent(&world, false)), [prefill.context]);
    assert_eq!(parents(&sent(&world, true)), [decode.context]);
    assert!(parents(&world.decode_sidecars[0].headers.lock()).contains(&transfer.context));
    assert!(parents(&world.prefill_sidecar.headers.lock()).contains(&prefill.context));
}

#[tokio::test]
async fn a_failed_leg_is_a_failed_span_and_the_next_attempt_has_spans_of_its_own() {
    let world = World::new(Setup { traced: true, ..Setup::default() }).await;
    world.prefill.next(Prefills::Status(500, "{}"));
    world.decode_sidecar().next(Transfers::Problem(409, "lease_expired", "new_prefill"));
    world.complete(r#"{"prompt":"p"}"#).await;
    let spans = world.spans().await;
    let request = only(&spans, "request");
    assert_eq!((request.parent, said(request, "attempts")), (None, &Value::Number(3)));
    let errors = |name: &str| {
        let of = |span: &&Span| span.error.as_deref().map(str::to_owned);
        named(&spans, name).iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(errors("prefill"), [Some("prefill_failed".to_owned()), None, None]);
    assert_eq!(errors("transfer"), [Some("lease_expired".to_owned()), None]);
    assert_eq!(said(named(&spans, "transfer")[0], "next"), &text("new_prefill"));
    let prefills: Vec<Context> = named(&spans, "prefill").iter().map(|span| span.context).collect();
    assert_eq!(parents(&sent(&world, false)), prefills);
}

#[tokio::test]
async fn every_prompt_of_a_batch_and_a_proxied_request_are_in_their_requests_trace() {
    let world = World::new(Setup { traced: true, ..Setup::default() }).await;
    world.complete(r#"{"prompt":["a","b"]}"#).await;
    let spans = world.spans().await;
    let request = only(&spans, "request");
    assert_eq!((named(&spans, "prefill").len(), named(&spans, "decode").len()), (2, 2));
    assert!(spans.iter().all(|span| span.context.trace_id == request.context.trace_id));
    world.post("/tokenize", "{}", &[]).await;
    let spans = world.spans().await;
    assert_eq!(said(only(&spans, "request"), "http.route"), &text("proxied"));
    assert_eq!(parents(&sent(&world, true)).last(), Some(&only(&spans, "decode").context));
}

#[tokio::test]
async fn what_a_caller_does_not_want_recorded_is_passed_on_as_it_is() {
    let world = World::new(Setup { traced: true, ..Setup::default() }).await;
    let unsampled = CALLER.replace("-01", "-00");
    world.post("/v1/completions", r#"{"prompt":"p"}"#, &[("traceparent", &unsampled)]).await;
    assert_eq!(sent(&world, false)[0]["traceparent"], unsampled.as_str());
    let done = |event: &Event| matches!(event, Event::Finished { .. });
    world.journal.wait_for("the transfer's end", 1, done).await;
    assert!(world.decode_sidecars[0].headers.lock().iter().all(|headers| headers["traceparent"] == unsampled.as_str()));
    world.complete(r#"{"prompt":"p"}"#).await;
    assert_eq!(
        said(only(&world.spans().await, "request"), "request_id"),
        &text("test-2"),
        "the first was not recorded"
    );
}

#[tokio::test]
async fn what_is_logged_is_changed_by_operators_while_it_runs() {
    let world = World::new(Setup::default()).await;
    let put = async |filter: &str| {
        let body = format!("{{\"filter\":\"{filter}\"}}");
        world.send_to(world.operators, "PUT", "/v1/log-level", &[("content-type", "application/json")], body).await
    };
    assert_eq!(put("info,router=debug").await.status.as_u16(), 200);
    assert_eq!(world.get_from(world.operators, "/v1/log-level").await.json()["filter"], "info,router=debug");
    let refused = put("router=shout").await;
    assert_eq!((refused.status.as_u16(), &*refused.code()), (400, "log_filter_invalid"));
    assert_eq!(world.get_from(world.operators, "/v1/log-level").await.json()["filter"], "info,router=debug");
}

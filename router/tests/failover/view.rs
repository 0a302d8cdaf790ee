//! What a test looks at: the client's view, and what the fakes saw.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;

use crate::engines::ANSWER;
use crate::journal::Event;
use crate::world::{Answer, World};

pub(crate) const BODY: &str = r#"{"prompt":"p"}"#;
pub(crate) const STREAM: &str = r#"{"prompt":"p","stream":true}"#;

/// What became of P's blocks, in numbers of prefills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// P's sidecar was asked to release them: nobody will read them.
    pub(crate) released: usize,
    /// P's sidecar was told that they have been read: D's sidecar tells P's engine.
    pub(crate) read: usize,
}

/// Legs that the fakes saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Legs {
    pub(crate) prefills: usize,
    pub(crate) transfers: usize,
    pub(crate) decodes: usize,
}

/// Status and attempts of an answer that is as it should be.
pub(crate) fn served(answer: &Answer) -> (u16, &str) {
    (answer.status.as_u16(), answer.header("x-kvgate-attempts"))
}

/// Sends so many requests, one after the other, which must all be answered well, and says how many tries they took together.
pub(crate) async fn tries_of(world: &World, requests: usize) -> usize {
    let mut tries = 0;
    for _ in 0..requests {
        let answer = world.complete(BODY).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, ANSWER.as_bytes()), "{answer:?}");
        tries += answer.header("x-kvgate-attempts").parse::<usize>().unwrap();
    }
    tries
}

/// Status, code and attempts of an error, which has OpenAI's form, the request's id and no address.
pub(crate) fn refused(answer: &Answer) -> (u16, String, &str) {
    assert_eq!(answer.header("content-type"), "application/json");
    check_form(&answer.json(), answer.header("x-request-id"));
    (answer.status.as_u16(), answer.code(), answer.header("x-kvgate-attempts"))
}

/// The code of an error event that ends a stream.
pub(crate) fn error_event(event: &str, request_id: &str) -> String {
    let data = event.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
    let json: Value = serde_json::from_str(data).unwrap();
    check_form(&json, request_id);
    json.pointer("/error/code").and_then(Value::as_str).unwrap().to_owned()
}

fn check_form(body: &Value, request_id: &str) {
    let field = |name: &str| body.pointer(&format!("/error/{name}")).and_then(Value::as_str).unwrap();
    assert!(!field("message").is_empty() && !field("type").is_empty() && !field("code").is_empty());
    assert_eq!(field("request_id"), request_id);
    assert!(!body.to_string().contains("127.0.0.1") && !body.to_string().contains("10.9.8.7"), "no addresses: {body}");
}

pub(crate) fn legs(world: &World) -> Legs {
    let count = |wanted: fn(&Event) -> bool| world.journal.count(wanted);
    Legs {
        prefills: count(|event| matches!(event, Event::Prefill { .. })),
        transfers: count(|event| matches!(event, Event::Asked { .. })),
        decodes: count(|event| matches!(event, Event::Decode { .. })),
    }
}

/// Waits until P's sidecar has been told what is expected, and checks that it was told nothing else.
pub(crate) async fn check_blocks(world: &World, expected: Blocks) {
    let told = |event: &Event| matches!(event, Event::Released { .. } | Event::Forgotten { .. });
    world.journal.wait_for("word to P's sidecar", expected.released + expected.read, told).await;
    let released = world.journal.count(|event| matches!(event, Event::Released { .. }));
    let read = world.journal.count(|event| matches!(event, Event::Forgotten { .. }));
    assert_eq!(Blocks { released, read }, expected);
}

/// Waits until every transfer that landed has been ended.
pub(crate) async fn check_finished(world: &World, transfers: usize) {
    world.journal.wait_for("the transfers' ends", transfers, |event| matches!(event, Event::Finished { .. })).await;
}

/// One of the router's figures.
pub(crate) async fn figure(world: &World, line: &str) -> u64 {
    let page = String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap();
    let value = page.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
    value.unwrap_or(0)
}

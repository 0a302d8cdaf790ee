//! Invariant B: what goes in comes out, as it comes.

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::engines::{ANSWER, Decodes, EVENTS};
use crate::journal::Event;
use crate::world::{Setup, World, next, whole};

#[tokio::test]
async fn every_byte_that_is_not_edited_reaches_the_decode_engine() {
    let world = World::new(Setup::default()).await;
    let body = r#"{ "temperature":0.10, "prompt":"é\u00e9", "unknown":{"z":1e3,"a":null},"max_tokens": 12345678901234567890 }"#;
    world.complete(body).await;
    let sent = String::from_utf8(world.journal.bodies(true).remove(0)).unwrap();
    let kept = body.trim_end_matches(" }");
    assert!(sent.starts_with(kept), "{sent}");
    let params: Value = serde_json::from_str(&sent).unwrap();
    assert_eq!(params["kv_transfer_params"]["remote_engine_id"].as_str().map(|id| &id[..8]), Some("virtual_"));
}

#[tokio::test]
async fn a_clients_transfer_parameters_never_reach_an_engine() {
    let world = World::new(Setup::default()).await;
    let evil = r#"{"kv_transfer_params":{"remote_host":"evil"},"prompt":"p","kv\u005ftransfer_params":{"remote_host":"evil"}}"#;
    assert_eq!(world.complete(evil).await.status.as_u16(), 200);
    let whole = r#"{"kv_transfer_params":{"remote_host":"evil"},"prompt":"a","n":2}"#;
    assert_eq!(world.complete(whole).await.header("x-kvgate-path"), "local");
    for body in world.journal.bodies(true).into_iter().chain(world.journal.bodies(false)) {
        assert!(!String::from_utf8(body).unwrap().contains("evil"));
    }
}

#[tokio::test]
async fn answers_and_headers_come_back_as_the_engine_sent_them() {
    let world = World::new(Setup::default()).await;
    let headers =
        [("authorization", "Bearer k"), ("traceparent", "00-a-b-01"), ("connection", "x-hop"), ("x-hop", "1")];
    let answer = world.post("/v1/completions", r#"{"prompt":"p"}"#, &headers).await;
    assert_eq!(&*answer.body, ANSWER.as_bytes());
    assert_eq!((answer.header("content-type"), answer.header("x-engine")), ("application/json", "kept"));
    assert_eq!(answer.header("content-length"), ANSWER.len().to_string());
    for event in world.journal.events() {
        if let Event::Prefill { headers, .. } | Event::Decode { headers, .. } = event {
            assert_eq!(headers["authorization"], "Bearer k");
            assert_eq!(headers["traceparent"], "00-a-b-01");
            assert!(!headers.contains_key("x-hop"));
        }
    }
    let answer = world.complete(r#"{"prompt":"p","stream":true}"#).await;
    assert_eq!(&*answer.body, EVENTS.concat().as_bytes());
}

#[tokio::test]
async fn a_stream_is_passed_on_frame_by_frame_as_it_comes() {
    let world = World::new(Setup::default()).await;
    let (tx, rx) = mpsc::channel(4);
    world.decode().next(Decodes::Fed(rx));
    let feed = async |text: &'static str| tx.send(Bytes::from(text)).await.unwrap();
    feed("data: {\"a\"").await;
    let opening = world.open("/v1/completions", r#"{"prompt":"p","stream":true}"#, &[]);
    let (mut answer, ()) = tokio::join!(opening, async {
        world.journal.wait_for("the decode", 1, |event| matches!(event, Event::Decode { .. })).await;
        feed(":1}\n\n").await;
    });
    let mut first = next(answer.body_mut()).await;
    if first == "data: {\"a\"" {
        first.push_str(&next(answer.body_mut()).await);
    }
    assert_eq!(first, "data: {\"a\":1}\n\n");
    feed("data: {\"b\":2}\n\n").await;
    assert_eq!(next(answer.body_mut()).await, "data: {\"b\":2}\n\n", "it comes although the stream goes on");
    feed("data: [DO").await;
    feed("NE]\n\n").await;
    assert_eq!(next(answer.body_mut()).await, "data: [DONE]\n\n", "events come whole");
    assert_eq!(world.journal.count(|event| matches!(event, Event::Finished { .. })), 0, "the decode leg is still open");
    drop(tx);
    assert!(whole(answer).await.body.is_empty());
    world.journal.wait_for("the transfer's end", 1, |event| matches!(event, Event::Finished { .. })).await;
}

#[tokio::test]
async fn what_cannot_be_split_goes_whole_to_one_decode_engine() {
    let world = World::new(Setup::default()).await;
    for (body, why) in [
        (r#"{"prompt":"p","n":2}"#, "several_choices"),
        (r#"{"prompt":["1","2","3","4","5","6","7","8","9"]}"#, "several_prompts"),
        (r#"{"prompt":"p","prompt_logprobs":1}"#, "prompt_logprobs"),
        (r#"{"prompt":"p","echo":true,"logprobs":1}"#, "echo_logprobs"),
    ] {
        let answer = world.complete(body).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-path")), (200, "local"));
        assert_eq!(answer.header("x-kvgate-local-because"), why);
        assert_eq!(world.journal.bodies(true).pop().unwrap(), body.as_bytes());
    }
    assert_eq!(world.journal.count(|event| !matches!(event, Event::Decode { rank: Some(_), request: None, .. })), 0);
}

#[tokio::test]
async fn an_engines_own_verdict_on_the_request_is_passed_on() {
    let world = World::new(Setup::default()).await;
    let verdict = r#"{"error":{"message":"max_tokens is too large","type":"BadRequestError","code":400}}"#;
    world.decode().next(Decodes::Status(400, verdict));
    let answer = world.complete(r#"{"prompt":"p"}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (400, verdict.as_bytes()));
    world.prefill.next(crate::engines::Prefills::Status(404, verdict));
    let answer = world.complete(r#"{"prompt":"p"}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (404, verdict.as_bytes()));
    let models = world.get("/v1/models").await;
    assert_eq!(models.json()["data"][0]["id"], "m");
}

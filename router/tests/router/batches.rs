//! Several prompts in one body: a prefill, a transfer and a decode for each, and one answer.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::engines::{Decodes, Prefills};
use crate::journal::Event;
use crate::world::{Setup, World, next};

const BATCH: &str = r#"{ "prompt":["a", [1,2], "c"],"max_tokens":5 , "x":0.10}"#;
const STREAM: &str = r#"{"prompt":["a","b"],"stream":true,"stream_options":{"include_usage":true}}"#;
const ANSWER: &str = r#"{"id":"c","choices":[{"index":0,"text":"t"}],"usage":{"prompt_tokens":2,"completion_tokens":3,"prompt_tokens_details":null}}"#;
const EVENTS: &[&str] = &[
    "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"text\":\"x\"}]}\n\n",
    ": keep-alive\n\ndata: {\"id\":\"c\",\"choices\":[{\"index\":0,\"text\":\"y\",\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
];

fn prompts(world: &World, decodes: bool) -> Vec<Value> {
    let bodies = world.journal.bodies(decodes).into_iter();
    let mut prompts: Vec<Value> =
        bodies.map(|body| serde_json::from_slice::<Value>(&body).unwrap()["prompt"].clone()).collect();
    prompts.sort_by_key(ToString::to_string);
    prompts
}

#[tokio::test]
async fn each_prompt_is_split_and_the_answers_come_back_as_one() {
    let world = World::new(Setup::default()).await;
    (0..3).for_each(|_| world.decode().next(Decodes::Whole(ANSWER)));
    let answer = world.complete(BATCH).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-path")), (200, "pd"));
    let json = answer.json();
    let indexes: Vec<_> = json["choices"].as_array().unwrap().iter().map(|choice| choice["index"].clone()).collect();
    assert_eq!(indexes, [0, 1, 2]);
    assert_eq!(json["usage"], json!({"prompt_tokens": 6, "completion_tokens": 9, "prompt_tokens_details": null}));
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    for decodes in [false, true] {
        assert_eq!(prompts(&world, decodes), [json!("a"), json!("c"), json!([1, 2])]);
    }
    let sent = world.journal.bodies(true).into_iter().map(|body| String::from_utf8(body).unwrap());
    assert!(sent.into_iter().all(|body| body.contains(r#","max_tokens":5 , "x":0.10,"#)));
    assert_eq!(world.journal.count(|event| matches!(event, Event::Decode { request: None, .. })), 0);
    world.journal.wait_for("the ends of all transfers", 3, |event| matches!(event, Event::Finished { .. })).await;
}

#[tokio::test]
async fn streams_come_back_as_one_with_one_usage_and_one_end() {
    let world = World::new(Setup::default()).await;
    (0..2).for_each(|_| world.decode().next(Decodes::Events(EVENTS)));
    let answer = world.complete(STREAM).await;
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let data: Vec<&str> = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
    assert_eq!((data.len(), data[5]), (6, "[DONE]"));
    let chunks: Vec<Value> = data[..5].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    for prompt in [0, 1] {
        let of = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == prompt);
        assert_eq!(of.map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect::<String>(), "xy");
    }
    assert_eq!(chunks[4]["usage"], json!({"prompt_tokens": 8, "completion_tokens": 4}));
    world.journal.wait_for("the ends of all transfers", 2, |event| matches!(event, Event::Finished { .. })).await;
}

/// The streams of two prompts, each with one event that the client has read.
async fn two_streams(world: &World) -> ([mpsc::Sender<Bytes>; 2], Response<Body>) {
    let feeds = [mpsc::channel(2), mpsc::channel(2)].map(|(tx, rx)| {
        world.decode().next(Decodes::Fed(rx));
        tx
    });
    for feed in &feeds {
        feed.send(Bytes::from(EVENTS[0])).await.unwrap();
    }
    let mut answer = world.open("/v1/completions", STREAM, &[]).await;
    for _ in 0..2 {
        assert!(next(answer.body_mut()).await.contains(r#""text":"x""#));
    }
    (feeds, answer)
}

#[tokio::test]
async fn a_stream_of_several_prompts_comes_as_it_is_made() {
    let world = World::new(Setup::default()).await;
    let ([first, second], mut answer) = two_streams(&world).await;
    second.send(Bytes::from(EVENTS[1])).await.unwrap();
    assert!(next(answer.body_mut()).await.contains(r#""text":"y""#), "one goes on while the other is silent");
    drop(answer);
    world.journal.wait_for("both cancellations", 2, |event| matches!(event, Event::DecodeCancelled)).await;
    world.journal.wait_for("the ends of all transfers", 2, |event| matches!(event, Event::Finished { .. })).await;
    drop((first, second));
}

#[tokio::test]
async fn one_prompt_s_failure_is_that_of_all() {
    let world = World::new(Setup::default()).await;
    let verdict = r#"{"error":{"message":"too long","type":"BadRequestError","code":400}}"#;
    world.decode().next(Decodes::Hangs);
    world.decode().next(Decodes::Status(400, verdict));
    let answer = world.complete(r#"{"prompt":["a","b"]}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (400, verdict.as_bytes()));
    world.journal.wait_for("the other's cancellation", 1, |event| matches!(event, Event::DecodeCancelled)).await;
    world.journal.wait_for("the ends of all transfers", 2, |event| matches!(event, Event::Finished { .. })).await;

    let world = World::new(Setup { args: "--max-attempts 1", ..Setup::default() }).await;
    world.prefill.next(Prefills::Status(500, "{}"));
    world.prefill.next(Prefills::Hangs);
    let answer = world.complete(r#"{"prompt":["a","b"]}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (502, "prefill_failed"));
    world.journal.wait_for("the other's cancellation", 1, |event| matches!(event, Event::PrefillCancelled)).await;
}

#[tokio::test]
async fn an_error_in_one_stream_ends_all() {
    let world = World::new(Setup::default()).await;
    let ([first, second], mut answer) = two_streams(&world).await;
    first.send(Bytes::from("data: {\"error\":{\"message\":\"m\",\"code\":500}}\n\n")).await.unwrap();
    assert!(next(answer.body_mut()).await.ends_with("\"code\":500}}\n\ndata: [DONE]\n\n"));
    world.journal.wait_for("the other's cancellation", 1, |event| matches!(event, Event::DecodeCancelled)).await;
    drop((first, second));
}

#[tokio::test]
async fn answers_that_do_not_go_together_are_an_error() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::Whole(r#"{"id":"c"}"#));
    let answer = world.complete(r#"{"prompt":["a","b"]}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (502, "decode_answer_invalid"));
}

#[tokio::test]
async fn more_prompts_than_may_be_split_go_whole() {
    let world = World::new(Setup { args: "--max-batch-split 2", ..Setup::default() }).await;
    assert_eq!(world.complete(r#"{"prompt":["a","b"]}"#).await.header("x-kvgate-path"), "pd");
    let answer = world.complete(r#"{"prompt":["a","b","c"]}"#).await;
    assert_eq!((answer.header("x-kvgate-path"), answer.header("x-kvgate-local-because")), ("local", "several_prompts"));
    let long = format!(r#"{{"prompt":["a","b"],"x":"{}"}}"#, "x".repeat(1 << 20));
    assert_eq!(world.complete(long).await.header("x-kvgate-path"), "local", "it would be repeated too often");
}

#[tokio::test]
async fn every_prompt_counts_as_served_and_none_as_a_retry() {
    let world = World::new(Setup { args: "--peer-metrics", ..Setup::default() }).await;
    (0..3).for_each(|_| world.decode().next(Decodes::Whole(ANSWER)));
    assert_eq!(world.complete(BATCH).await.status.as_u16(), 200);
    let metrics = String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap();
    let served = metrics
        .lines()
        .filter(|line| line.starts_with("router_target_served_total") && line.contains(r#"leg="decode""#));
    let served: u64 = served.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
    assert_eq!(served, 3, "{metrics}");
    assert!(!metrics.contains("vllm_router_retries_total{"), "{metrics}");
}

#[tokio::test]
async fn prompts_that_are_all_too_short_to_split_are_said_to_be_local() {
    let world = World::new(Setup { args: "--min-prefill-tokens 1000", ..Setup::default() }).await;
    (0..3).for_each(|_| world.decode().next(Decodes::Whole(ANSWER)));
    let answer = world.complete(BATCH).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("x-kvgate-path"), answer.header("x-kvgate-local-because")),
        (200, "local", "short_prompt")
    );
}

#[tokio::test]
async fn answers_that_are_too_long_to_be_merged_are_refused() {
    let world = World::new(Setup::default()).await;
    let long: &'static str =
        Box::leak(format!(r#"{{"choices":[{{"index":0,"text":"{}"}}]}}"#, "x".repeat(6 << 20)).into());
    (0..3).for_each(|_| world.decode().next(Decodes::Whole(long)));
    let answer = world.complete(BATCH).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (502, "answer_too_large"));
}

#[tokio::test]
async fn each_attempt_is_on_record_by_the_id_that_its_engines_know() {
    let world = World::new(Setup::default()).await;
    (0..3).for_each(|_| world.decode().next(Decodes::Whole(ANSWER)));
    assert_eq!(world.complete(BATCH).await.status.as_u16(), 200);
    let record = async {
        loop {
            let answer = world.get("/v1/requests/test-1").await;
            if answer.status.as_u16() == 200 {
                return answer.json();
            }
            tokio::task::yield_now().await;
        }
    };
    let record = tokio::time::timeout(std::time::Duration::from_secs(10), record).await.unwrap();
    let known: BTreeSet<String> = world.journal.events().into_iter().filter_map(sent_id).collect();
    let attempts = record["attempts"].as_array().unwrap();
    let on_record: BTreeSet<String> = attempts.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((known.len(), &on_record), (3, &known), "{record}");
    for attempt in attempts {
        assert_eq!(attempt["transfer"]["state"], "done", "what D's sidecar says of it is found: {record}");
    }
    for id in known {
        assert_eq!(world.get(&format!("/v1/requests/{id}")).await.json()["id"], "test-1");
    }
}

fn sent_id(event: Event) -> Option<String> {
    let Event::Decode { headers, .. } = event else { return None };
    Some(headers["x-request-id"].to_str().unwrap().to_owned())
}

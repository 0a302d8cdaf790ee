//! What is let in, and what is told to those who are not.

use clap::Parser;
use router::config::Args;
use tokio_util::sync::CancellationToken;

use crate::engines::Decodes;
use crate::journal::Event;
use crate::world::{Setup, World, log_filter};

const BODY: &str = r#"{"prompt":"p"}"#;

#[tokio::test]
async fn a_full_router_answers_429_and_takes_work_again_afterwards() {
    let world = World::new(Setup { args: "--max-in-flight 1 --max-queue 1", ..Setup::default() }).await;
    world.decode().next(Decodes::Hangs);
    let first = world.start(BODY);
    world.journal.wait_for("the first decode", 1, |event| matches!(event, Event::Decode { .. })).await;
    let second = world.start(BODY);
    while world.get("/readyz").await.json()["inside"] != 2 {
        tokio::task::yield_now().await;
    }
    let third = world.complete(BODY).await;
    assert_eq!((third.status.as_u16(), &*third.code()), (429, "queue_full"));
    assert_eq!(
        (third.header("retry-after"), &*third.json()["error"]["type"].to_string()),
        ("1", "\"rate_limit_error\"")
    );
    assert_eq!(world.journal.count(|event| matches!(event, Event::Prefill { .. })), 1, "the second waits its turn");
    first.abort();
    assert_eq!(second.await.unwrap().status.as_u16(), 200);
}

#[tokio::test]
async fn bad_bodies_are_refused_before_anything_is_sent() {
    let world = World::new(Setup { args: "--max-body-bytes 1000", ..Setup::default() }).await;
    let huge = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(2000));
    for (body, status, code) in [
        ("{ not json", 400, "body_invalid"),
        ("[1]", 400, "body_invalid"),
        ("", 400, "body_invalid"),
        (r#"{"stream":"yes"}"#, 400, "body_invalid"),
        (&huge, 413, "body_too_large"),
    ] {
        let answer = world.complete(body.to_owned()).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code), "{answer:?}");
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
        assert_eq!(answer.header("x-kvgate-path"), "none");
    }
    assert!(world.journal.events().is_empty());
    assert_eq!(world.get("/no//where").await.code(), "not_found");
    assert_eq!(world.get("/v1/completions").await.code(), "method_not_allowed");
    assert!(world.get("/version").await.json()["version"].is_string());
}

#[tokio::test]
async fn a_router_without_ready_ranks_says_which_and_why() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().set(0, "degraded");
    world.wait_until_ready(3).await;
    for _ in 0..3 {
        let answer = world.complete(BODY).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-decode-rank")), (200, "1"));
    }
    world.decode_sidecar().set(1, "handshaking");
    world.wait_until_ready(2).await;
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (503, "not_ready"));
    let message = answer.json()["error"]["message"].to_string();
    assert!(message.contains("decode-0@0 is degraded, decode-0@1 is handshaking"), "{message}");
    let ready = world.get("/readyz").await;
    assert_eq!(ready.status.as_u16(), 503);
    assert_eq!(ready.json()["targets"][2]["reasons"][0], "so");
    assert_eq!(world.get("/health").await.status.as_u16(), 503);
    world.decode_sidecar().set(0, "ready");
    world.wait_until_ready(3).await;
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
    world.prefill_sidecar.set(0, "gone");
    world.wait_until_ready(2).await;
    let answer = world.complete(BODY).await;
    assert_eq!(answer.status.as_u16(), 503, "prefill rank 1 and decode rank 0 are no pair");
}

#[tokio::test]
async fn a_sidecar_that_wants_another_token_leaves_its_ranks_not_ready() {
    let world = World::unready(Setup { token: Some("s3cret"), ..Setup::default() }).await;
    let reasons = loop {
        let ready = world.get("/readyz").await.json();
        let words = ready["targets"][0]["reasons"][0].as_str().unwrap().to_owned();
        if words.contains("401") {
            break words;
        }
        tokio::task::yield_now().await;
    };
    assert!(reasons.contains("sidecar"), "{reasons}");
    let answer = world.complete(BODY).await;
    assert_eq!(answer.status.as_u16(), 503);
    assert!(!answer.json().to_string().contains("127.0.0.1"), "clients learn no addresses");
}

#[tokio::test]
async fn a_broken_event_stream_is_taken_up_again_and_the_last_states_stand_meanwhile() {
    let world = World::new(Setup::default()).await;
    for state in ["degraded", "ready"] {
        world.decode_sidecar().kick();
        assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
        world.decode_sidecar().set(0, state);
        world.wait_until_ready(if state == "ready" { 4 } else { 3 }).await;
    }
}

#[tokio::test]
async fn bodies_that_would_exceed_the_routers_memory_are_refused() {
    let world = World::new(Setup { args: "--max-body-bytes 2048 --max-bodies-bytes 2048", ..Setup::default() }).await;
    world.prefill.next(crate::engines::Prefills::Hangs);
    let body = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(1500));
    let first = world.start(body.clone());
    world.journal.wait_for("the first prefill", 1, |event| matches!(event, Event::Prefill { .. })).await;
    let answer = world.complete(body.clone()).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (429, "memory_full"));
    first.abort();
    while world.complete(body.clone()).await.status.as_u16() != 200 {}
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

#[tokio::test]
async fn a_command_line_that_cannot_be_used_ends_with_64_and_a_taken_port_with_1() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    for (extra, code) in [("--max-in-flight 0".to_owned(), 64), (format!("--port {port}"), 1)] {
        let line = format!("router --prefill http://127.0.0.1:1 --decode http://127.0.0.1:2 {extra}");
        let args = Line::try_parse_from(line.split_whitespace()).unwrap().args;
        let error = router::run(args, "abc", log_filter(), CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
    }
}

#[tokio::test]
async fn a_whole_process_tells_its_port_and_ends_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ports.json");
    let line = format!(
        "router --prefill http://127.0.0.1:1 --decode http://127.0.0.1:2 --port 0 --ports-file {}",
        file.display()
    );
    let stop = CancellationToken::new();
    let ended =
        router::run(Line::try_parse_from(line.split_whitespace()).unwrap().args, "abc", log_filter(), stop.clone());
    let told = async {
        let ports = loop {
            match std::fs::read(&file) {
                Ok(text) => break serde_json::from_slice::<serde_json::Value>(&text).unwrap(),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert!(ports["http"].as_u64().unwrap() > 0);
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(ended, told);
    ended.unwrap();
}

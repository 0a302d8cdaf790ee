//! Clients that leave, and the router that leaves.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use router::router::Ended;
use tokio::sync::mpsc;

use crate::engines::Decodes;
use crate::journal::Event;
use crate::world::{Setup, World, next, whole};

const STREAM: &str = r#"{"prompt":"p","stream":true}"#;

#[tokio::test]
async fn a_client_that_leaves_during_the_decode_ends_the_leg_and_the_transfer() {
    let world = World::new(Setup::default()).await;
    let (tx, rx) = mpsc::channel(1);
    world.decode().next(Decodes::Fed(rx));
    tx.send(Bytes::from("data: {}\n\n")).await.unwrap();
    let mut answer = world.open("/v1/completions", STREAM, &[]).await;
    assert_eq!(next(answer.body_mut()).await, "data: {}\n\n");
    drop(answer);
    world.journal.wait_for("the cancellation", 1, |event| matches!(event, Event::DecodeCancelled)).await;
    world.journal.wait_for("the transfer's end", 1, |event| matches!(event, Event::Finished { .. })).await;
    assert_eq!(
        world.journal.count(|event| matches!(event, Event::Released { .. })),
        0,
        "P was told when the KV landed"
    );

    world.decode().next(Decodes::Hangs);
    let client = world.start(STREAM);
    world.journal.wait_for("the decode", 2, |event| matches!(event, Event::Decode { .. })).await;
    client.abort();
    world.journal.wait_for("the second end", 2, |event| matches!(event, Event::Finished { .. })).await;
    world.journal.wait_for("the second cancellation", 2, |event| matches!(event, Event::DecodeCancelled)).await;
}

#[tokio::test]
async fn stopping_fails_readiness_refuses_work_and_lets_a_stream_end() {
    let mut world = World::new(Setup::default()).await;
    let (tx, answer) = world.streaming("data: 1\n\n").await;
    world.stop.cancel();
    let refused = loop {
        let refused = world.complete(STREAM).await;
        if refused.status.as_u16() == 503 {
            break refused;
        }
    };
    assert_eq!(refused.code(), "shutting_down");
    assert_eq!(refused.header("retry-after"), "1");
    let ready = world.get("/readyz").await;
    assert_eq!((ready.status.as_u16(), &ready.json()["draining"]), (503, &serde_json::json!(true)));
    assert_eq!(world.get("/livez").await.status.as_u16(), 200);
    tx.send(Bytes::from("data: 2\n\n")).await.unwrap();
    drop(tx);
    assert_eq!(&*whole(answer).await.body, b"data: 2\n\n", "the stream came to its end");
    assert_eq!(world.served.take().unwrap().await.unwrap(), Ended::Drained);
    assert_eq!(world.journal.count(|event| matches!(event, Event::DecodeCancelled)), 0);
    assert!(world.journal.count(|event| matches!(event, Event::Finished { .. })) >= 1, "sidecars have been told");
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_timeout_is_cut() {
    let mut world = World::new(Setup { args: "--drain-timeout 50ms", ..Setup::default() }).await;
    let (tx, mut answer) = world.streaming("data: 1\n\n").await;
    world.stop.cancel();
    assert_eq!(world.served.take().unwrap().await.unwrap(), Ended::Cut);
    let last = next(answer.body_mut()).await;
    assert!(last.contains("shutting_down"), "the client reads that the answer broke off: {last}");
    let rest = tokio::time::timeout(Duration::from_secs(5), answer.body_mut().frame()).await.unwrap();
    assert!(rest.is_none(), "and the body has an end");
    assert_eq!(world.journal.count(|event| matches!(event, Event::Finished { .. })), 1);
    drop(tx);
}

#[tokio::test]
async fn a_client_that_takes_no_bytes_is_left() {
    let world = World::new(Setup { args: "--client-deadline-ms 100", ..Setup::default() }).await;
    let (tx, rx) = mpsc::channel(1);
    world.decode().next(Decodes::Fed(rx));
    let chunk = Bytes::from(format!("data: {}\n\n", "x".repeat(1 << 20)));
    tx.send(chunk.clone()).await.unwrap();
    let answer = world.open("/v1/completions", STREAM, &[]).await;
    let fed = tokio::time::timeout(Duration::from_secs(10), async { while tx.send(chunk.clone()).await.is_ok() {} });
    assert!(fed.await.is_ok(), "the decode leg is still open");
    world.journal.wait_for("the transfer's end", 1, |event| matches!(event, Event::Finished { .. })).await;
    drop(answer);
}

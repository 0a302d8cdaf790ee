//! D fails.

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use crate::engines::{Decodes, EVENTS};
use crate::journal::Event;
use crate::view::{
    BODY, Blocks, Legs, STREAM, check_blocks, check_finished, error_event, legs, refused, served, tries_of,
};
use crate::world::{Setup, World, next};

const VERDICT: &str = r#"{"error":{"message":"max_tokens is too large","type":"BadRequestError","code":400}}"#;

#[tokio::test]
async fn no_client_sees_a_dead_decode_engine_beside_a_living_one() {
    let world = World::new(Setup { ranks: 1, dead_decode: true, ..Setup::default() }).await;
    let tries = tries_of(&world, 10).await;
    assert!((11..=20).contains(&tries), "the dead one was tried, and once per request at most: {tries}");
    assert_eq!(legs(&world), Legs { prefills: tries, transfers: tries, decodes: 10 });
    check_blocks(&world, Blocks { released: 0, read: tries }).await;
    check_finished(&world, tries).await;
}

#[tokio::test]
async fn a_decode_engines_verdict_on_the_request_keeps_its_status_and_body() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::Status(400, VERDICT));
    let answer = world.complete(BODY).await;
    assert_eq!((served(&answer), &*answer.body), ((400, "1"), VERDICT.as_bytes()));
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 1, decodes: 1 });
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
    check_finished(&world, 1).await;
}

#[tokio::test]
async fn a_verdict_in_the_first_event_of_a_stream_gets_the_status_that_it_speaks_of() {
    const EVENT: &str = concat!(
        "data: ",
        r#"{"error":{"message":"max_tokens is too large","type":"BadRequestError","code":400}}"#,
        "

"
    );
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::Events(&[": hello\n\n", EVENT, "data: [DONE]\n\n"]));
    let answer = world.complete(STREAM).await;
    assert_eq!((served(&answer), &*answer.body), ((400, "1"), VERDICT.as_bytes()));
    assert_eq!(answer.header("content-type"), "application/json");
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
    check_finished(&world, 1).await;
}

#[tokio::test]
async fn a_failure_in_the_first_event_of_a_stream_is_a_failed_attempt() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::ErrorEvent);
    let answer = world.complete(STREAM).await;
    assert_eq!((served(&answer), &*answer.body), ((200, "2"), EVENTS.concat().as_bytes()));
    check_blocks(&world, Blocks { released: 0, read: 2 }).await;
    check_finished(&world, 2).await;
}

#[tokio::test]
async fn no_transfer_is_decoded_twice() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::Status(500, "{}"));
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    assert_eq!(legs(&world), Legs { prefills: 2, transfers: 2, decodes: 2 });
    let used = |event| if let Event::Decode { request, .. } = event { request } else { None };
    let used: std::collections::BTreeSet<_> = world.journal.events().into_iter().filter_map(used).collect();
    assert_eq!(used.len(), 2);
    check_blocks(&world, Blocks { released: 0, read: 2 }).await;
}

#[tokio::test]
async fn when_every_decode_engine_answers_500_the_client_gets_502_after_all_attempts() {
    let world = World::new(Setup::default()).await;
    for _ in 0..4 {
        world.decode().next(Decodes::Status(500, "{\"error\":\"at 127.0.0.1\"}"));
    }
    assert_eq!(refused(&world.complete(BODY).await), (502, "decode_failed".to_owned(), "4"));
    check_blocks(&world, Blocks { released: 0, read: 4 }).await;
    check_finished(&world, 4).await;
}

#[tokio::test]
async fn a_full_decode_engine_is_left_for_another_rank() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::Status(503, "{}"));
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    let rank = |event| if let Event::Decode { rank, .. } = event { rank } else { None };
    let ranks: std::collections::BTreeSet<_> = world.journal.events().into_iter().filter_map(rank).collect();
    assert_eq!(ranks.len(), 2);
}

#[tokio::test]
async fn when_all_decode_engines_are_full_the_client_is_told_when_to_come_back() {
    for (status, kind) in [(429, "rate_limit_error"), (503, "service_unavailable")] {
        let world = World::new(Setup { args: "--max-attempts 2", ..Setup::default() }).await;
        for _ in 0..2 {
            world.decode().next(Decodes::Status(status, "{}"));
        }
        let answer = world.complete(BODY).await;
        assert_eq!(refused(&answer), (status, "decode_overloaded".to_owned(), "2"));
        assert_eq!((answer.header("retry-after"), &answer.json()["error"]["type"]), ("7", &kind.into()));
    }
}

#[tokio::test]
async fn a_decode_engine_that_breaks_off_before_its_first_event_is_a_failed_attempt() {
    for (does, body) in [(Decodes::Breaks(&["data: {"]), STREAM), (Decodes::Breaks(&[]), BODY)] {
        let world = World::new(Setup::default()).await;
        world.decode().next(does);
        assert_eq!(served(&world.complete(body).await), (200, "2"));
        check_finished(&world, 2).await;
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_an_error_event_and_cleanly() {
    let world = World::new(Setup::default()).await;
    let (tx, rx) = mpsc::channel(1);
    world.decode().next(Decodes::FedThenBreaks(rx));
    tx.send(Bytes::from("data: 1\n\n")).await.unwrap();
    let mut answer = world.open("/v1/completions", STREAM, &[("x-request-id", "mine")]).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["x-kvgate-attempts"]), (200, &"1".parse().unwrap()));
    assert_eq!(next(answer.body_mut()).await, "data: 1\n\n");
    drop(tx);
    assert_eq!(error_event(&next(answer.body_mut()).await, "mine"), "decode_broken");
    assert!(answer.body_mut().frame().await.is_none(), "the body has an end");
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 1, decodes: 1 });
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
    check_finished(&world, 1).await;
    let broken = r#"router_request_ended_total{outcome="broken",path="pd"}"#;
    assert_eq!(crate::view::figure(&world, broken).await, 1);
}

#[tokio::test]
async fn of_an_event_that_breaks_off_nothing_is_shown() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::Breaks(&["data: 1\n\n", "data: {\"choices\":[{\"te"]));
    let answer = world.complete(STREAM).await;
    let body = String::from_utf8(answer.body.to_vec()).unwrap();
    let rest = body.strip_prefix("data: 1\n\n").unwrap();
    assert_eq!(error_event(rest, answer.header("x-request-id")), "decode_broken");
}

#[tokio::test]
async fn an_answer_in_one_piece_that_breaks_off_ends_the_connection() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::BreaksWhole);
    let answer = world.open("/v1/completions", BODY, &[]).await;
    assert_eq!(answer.status().as_u16(), 200);
    assert!(answer.into_body().collect().await.is_err(), "nobody takes it for whole");
    check_finished(&world, 1).await;
}

#[tokio::test]
async fn a_decode_engine_that_falls_silent_ends_the_stream_with_an_error_event() {
    let world = World::new(Setup { args: "--idle-deadline-ms 100", ..Setup::default() }).await;
    let (tx, rx) = mpsc::channel(1);
    world.decode().next(Decodes::Fed(rx));
    tx.send(Bytes::from("data: 1\n\n")).await.unwrap();
    let answer = world.complete(STREAM).await;
    let body = String::from_utf8(answer.body.to_vec()).unwrap();
    let rest = body.strip_prefix("data: 1\n\n").unwrap();
    assert_eq!(error_event(rest, answer.header("x-request-id")), "decode_timeout");
    world.journal.wait_for("the cancellation", 1, |event| matches!(event, Event::DecodeCancelled)).await;
    check_finished(&world, 1).await;
}

#[tokio::test]
async fn a_decode_engine_that_never_begins_is_given_up_in_time() {
    let world = World::new(Setup { args: "--decode-deadline-ms 100 --max-attempts 2", ..Setup::default() }).await;
    world.decode().next(Decodes::Hangs);
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    world.journal.wait_for("the cancellation", 1, |event| matches!(event, Event::DecodeCancelled)).await;
    world.decode().next(Decodes::Hangs);
    world.decode().next(Decodes::Hangs);
    assert_eq!(refused(&world.complete(BODY).await), (504, "decode_timeout".to_owned(), "2"));
    check_blocks(&world, Blocks { released: 0, read: 4 }).await;
    check_finished(&world, 4).await;
}

#[tokio::test]
async fn a_decode_engines_own_transfer_parameters_reach_no_client() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::Whole(r#"{"choices":[],"kv_transfer_params":{"remote_host":"10.9.8.7"},"usage":{}}"#));
    let answer = world.complete(BODY).await;
    assert_eq!(&*answer.body, br#"{"choices":[],"kv_transfer_params":{                        },"usage":{}}"#);
    world.decode().next(Decodes::Events(&[
        "data: {\"kv_transfer_params\":{\"remote_host\":\"10.9.8.7\"}}\n\n",
        "data: {\"kv_transfer_params\":null}\n\n",
    ]));
    let body = world.complete(STREAM).await.body;
    assert_eq!(
        &*body,
        b"data: {\"kv_transfer_params\":{                        }}\n\ndata: {\"kv_transfer_params\":null}\n\n"
    );
}

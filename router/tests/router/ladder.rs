//! The failure ladder: same transfer → another decode rank → new prefill → give up.

use crate::engines::{ANSWER, Decodes, EVENTS, Prefills};
use crate::journal::Event;
use crate::sidecars::Transfers;
use crate::world::{Setup, World};

const BODY: &str = r#"{"prompt":"p"}"#;

fn prefills(world: &World) -> usize {
    world.journal.count(|event| matches!(event, Event::Prefill { .. }))
}

fn released(event: &Event) -> bool {
    matches!(event, Event::Released { .. })
}

#[tokio::test]
async fn same_target_asks_again_with_the_same_prefill_and_rank() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Problem(502, "transfer_failed", "same_target"));
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-attempts")), (200, "2"));
    let asked = world.journal.asked();
    assert_eq!(asked[0]["dp_rank"], asked[1]["dp_rank"]);
    assert_eq!(asked[0]["kv_transfer_params"], asked[1]["kv_transfer_params"]);
    assert_ne!(asked[0]["attempt_id"], asked[1]["attempt_id"]);
    assert_eq!(prefills(&world), 1);
    assert_eq!(world.journal.count(released), 0, "the blocks were still needed");
}

#[tokio::test]
async fn other_target_takes_the_same_rank_of_another_pod() {
    let world = World::new(Setup { decode_pods: 2, ..Setup::default() }).await;
    for sidecar in &world.decode_sidecars {
        sidecar.next(Transfers::Problem(429, "staging_full", "other_target"));
    }
    let answer = world.complete(BODY).await;
    assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    let asked = world.journal.asked();
    assert_eq!(asked[0]["dp_rank"], asked[1]["dp_rank"]);
    assert_eq!(asked[0]["kv_transfer_params"], asked[1]["kv_transfer_params"], "the prefill serves both");
    assert_ne!(asked[1]["dp_rank"], asked[2]["dp_rank"], "no decode rank is left that pairs: a new prefill elsewhere");
    assert_eq!(prefills(&world), 2);
    world.journal.wait_for("the first prefill's release", 1, released).await;
}

#[tokio::test]
async fn other_target_under_any_pairing_keeps_the_prefill() {
    let world = World::new(Setup { args: "--rank-pairing any", ..Setup::default() }).await;
    world.decode_sidecar().next(Transfers::Problem(503, "rank_not_ready", "other_target"));
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
    let asked = world.journal.asked();
    assert_ne!(asked[0]["dp_rank"], asked[1]["dp_rank"]);
    assert_eq!(prefills(&world), 1);
}

#[tokio::test]
async fn new_prefill_releases_the_old_one() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Problem(409, "lease_expired", "new_prefill"));
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
    assert_eq!(prefills(&world), 2);
    let old =
        |event: &Event| matches!(event, Event::Released { request, rank: 0 } if request == "cmpl-test-1-1-0-12345678");
    world.journal.wait_for("the old prefill's release", 1, old).await;
}

#[tokio::test]
async fn never_ends_at_once_with_a_code_and_no_address() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Problem(400, "params_invalid", "never"));
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (502, "params_invalid"));
    assert!(!String::from_utf8(answer.body.to_vec()).unwrap().contains("10.9.8.7"));
    assert_eq!((prefills(&world), world.journal.asked().len()), (1, 1));
    world.journal.wait_for("the prefill's release", 1, released).await;
}

#[tokio::test]
async fn attempts_are_bounded_and_the_last_error_is_told() {
    let world = World::new(Setup { args: "--max-attempts 3", ..Setup::default() }).await;
    for _ in 0..3 {
        world.decode_sidecar().next(Transfers::Problem(502, "peer_unreachable", "new_prefill"));
    }
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (502, "peer_unreachable"));
    assert_eq!(prefills(&world), 3);
    assert_eq!(answer.header("x-kvgate-attempts"), "3");
}

#[tokio::test]
async fn a_request_that_no_rank_has_room_for_is_not_prefilled_again_and_again() {
    let world = World::new(Setup { ranks: 1, ..Setup::default() }).await;
    world.decode_sidecar().next(Transfers::Problem(413, "request_exceeds_staging", "other_target"));
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (413, "request_exceeds_staging"));
    assert_eq!(prefills(&world), 1);
}

#[tokio::test]
async fn the_step_that_is_told_is_the_one_that_was_taken() {
    // The other decode rank has no partner but its own prefill rank: another target means a new prefill.
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Problem(429, "staging_full", "other_target"));
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
    assert_eq!(prefills(&world), 2);
    let metrics = String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap();
    let step = |name: &str, count: u32| format!("router_failure_step_total{{step=\"{name}\"}} {count}");
    assert!(metrics.lines().any(|line| line == step("new_prefill", 1)), "{metrics}");
    assert!(!metrics.lines().any(|line| line == step("other_decode", 1)), "{metrics}");
}

#[tokio::test]
async fn a_failing_prefill_moves_to_another_rank() {
    let world = World::new(Setup::default()).await;
    world.prefill.next(Prefills::Status(500, "{}"));
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
    let rank = |event| if let Event::Prefill { rank, .. } = event { rank } else { None };
    let ranks: Vec<_> = world.journal.events().into_iter().filter_map(rank).collect();
    assert_eq!(ranks.len(), 2);
    assert_ne!(ranks[0], ranks[1]);
    for _ in 0..4 {
        world.prefill.next(Prefills::NoKv);
    }
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (502, "prefill_no_kv"));
}

#[tokio::test]
async fn a_late_prefill_is_cancelled_and_tried_elsewhere() {
    let world = World::new(Setup { args: "--prefill-deadline-ms 100", ..Setup::default() }).await;
    world.prefill.next(Prefills::Hangs);
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
    world.journal.wait_for("the cancellation", 1, |event| matches!(event, Event::PrefillCancelled)).await;
}

#[tokio::test]
async fn an_error_as_first_event_or_a_5xx_is_a_failed_attempt() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::ErrorEvent);
    let answer = world.complete(r#"{"prompt":"p","stream":true}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, EVENTS.concat().as_bytes()));
    world.decode().next(Decodes::Status(500, "{}"));
    let answer = world.complete(BODY).await;
    assert_eq!(&*answer.body, ANSWER.as_bytes());
    assert_eq!((prefills(&world), world.journal.asked().len()), (4, 4), "no transfer is decoded twice");
    world.journal.wait_for("all transfers' ends", 4, |event| matches!(event, Event::Finished { .. })).await;
    for _ in 0..4 {
        world.decode().next(Decodes::Status(500, "{}"));
    }
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (502, "decode_failed"));
}

#[tokio::test]
async fn the_fallback_is_marked_and_only_there_when_asked_for() {
    let world = World::new(Setup { args: "--fallback local-prefill --max-attempts 1", ..Setup::default() }).await;
    world.decode_sidecar().next(Transfers::Problem(504, "deadline", "other_target"));
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-path")), (200, "fallback"));
    assert_eq!(world.journal.bodies(true), [BODY.as_bytes()]);
    let page = String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap();
    assert!(page.contains(r#"router_request_ended_total{outcome="ok",path="fallback"} 1"#), "{page}");
}

#[tokio::test]
async fn the_fallback_gets_what_is_left_of_the_tries_and_at_least_one() {
    let world = World::new(Setup { args: "--fallback local-prefill --max-attempts 2", ..Setup::default() }).await;
    for _ in 0..2 {
        world.decode_sidecar().next(Transfers::Problem(502, "peer_unreachable", "new_prefill"));
        world.decode().next(Decodes::Status(500, "{}"));
    }
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-attempts")), (502, "3"));
}

#[tokio::test]
async fn the_fallback_serves_also_when_no_prefill_rank_is_ready() {
    let world = World::new(Setup { args: "--fallback local-prefill", ..Setup::default() }).await;
    for rank in 0..2 {
        world.prefill_sidecar.set(rank, "gone");
    }
    world.wait_until_ready(2).await;
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-path")), (200, "fallback"));
    assert_eq!(prefills(&world), 0);
}

#[tokio::test]
async fn a_lost_answer_ends_that_transfer_before_its_prefill_is_released() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Breaks);
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
    assert_eq!(prefills(&world), 2, "the first one's blocks might still be being read");
    let old = |event: &Event| matches!(event, Event::Released { request, .. } if request.starts_with("cmpl-test-1-1"));
    world.journal.wait_for("the first prefill's release", 1, old).await;
    let events = world.journal.events();
    let ended = |event: &Event| matches!(event, Event::Finished { transfer } if transfer == "t-test-1-1");
    assert!(events.iter().position(ended).unwrap() < events.iter().position(old).unwrap());
}

#[tokio::test]
async fn an_engine_s_objection_is_passed_on_however_long_it_is_and_blamed_on_nobody() {
    let world = World::new(Setup::default()).await;
    let long: &'static str = Box::leak(format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(1 << 20)).into());
    for prefills in [true, false] {
        if prefills {
            world.prefill.next(Prefills::Status(400, long));
        } else {
            world.decode().next(Decodes::Status(400, long));
        }
        let answer = world.complete(r#"{"prompt":"p"}"#).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-attempts")), (400, "1"));
        assert!(answer.body == long, "byte by byte");
    }
    let metrics = String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap();
    assert!(!metrics.contains("router_attempt_failed_total{"), "{metrics}");
}

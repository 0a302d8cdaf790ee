//! P fails.

use crate::engines::Prefills;
use crate::journal::Event;
use crate::view::{BODY, Blocks, Legs, check_blocks, figure, legs, refused, served, tries_of};
use crate::world::{Setup, World};

#[tokio::test]
async fn no_client_sees_a_dead_prefill_engine_beside_a_living_one() {
    let world = World::new(Setup { ranks: 1, dead_prefill: true, ..Setup::default() }).await;
    let tries = tries_of(&world, 10).await;
    assert!((11..=20).contains(&tries), "the dead one was tried, and once per request at most: {tries}");
    assert_eq!(legs(&world), Legs { prefills: 10, transfers: 10, decodes: 10 });
    check_blocks(&world, Blocks { released: 0, read: 10 }).await;
}

#[tokio::test]
async fn a_prefill_engine_that_answers_500_is_left_for_another_rank() {
    let world = World::new(Setup::default()).await;
    world.prefill.next(Prefills::Status(500, "{}"));
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    assert_eq!(legs(&world), Legs { prefills: 2, transfers: 1, decodes: 1 });
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
}

#[tokio::test]
async fn when_every_prefill_engine_answers_500_the_client_gets_502_after_all_attempts() {
    let world = World::new(Setup { args: "--max-attempts 3", ..Setup::default() }).await;
    for _ in 0..3 {
        world.prefill.next(Prefills::Status(500, "{\"error\":{\"message\":\"at 127.0.0.1\"}}"));
    }
    assert_eq!(refused(&world.complete(BODY).await), (502, "prefill_failed".to_owned(), "3"));
    assert_eq!(legs(&world), Legs { prefills: 3, transfers: 0, decodes: 0 });
    check_blocks(&world, Blocks::default()).await;
}

#[tokio::test]
async fn a_prefill_engine_that_hangs_is_given_up_in_time_and_its_request_cancelled() {
    let world = World::new(Setup { args: "--prefill-deadline-ms 100", ..Setup::default() }).await;
    world.prefill.next(Prefills::Hangs);
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    world.journal.wait_for("the cancellation", 1, |event| matches!(event, Event::PrefillCancelled)).await;
    assert_eq!(figure(&world, r#"router_attempt_failed_total{leg="prefill",fault="timeout"}"#).await, 1);
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
}

#[tokio::test]
async fn when_every_prefill_engine_hangs_the_client_gets_504() {
    let world = World::new(Setup { args: "--prefill-deadline-ms 50 --max-attempts 2", ..Setup::default() }).await;
    world.prefill.next(Prefills::Hangs);
    world.prefill.next(Prefills::Hangs);
    assert_eq!(refused(&world.complete(BODY).await), (504, "prefill_timeout".to_owned(), "2"));
    world.journal.wait_for("both cancellations", 2, |event| matches!(event, Event::PrefillCancelled)).await;
}

#[tokio::test]
async fn an_answer_without_transfer_parameters_is_counted_and_retried() {
    for nothing in [Prefills::NoKv, Prefills::Status(200, "{\"choices\":[]}")] {
        let world = World::new(Setup::default()).await;
        world.prefill.next(nothing);
        assert_eq!(served(&world.complete(BODY).await), (200, "2"));
        assert_eq!(legs(&world), Legs { prefills: 2, transfers: 1, decodes: 1 });
        assert_eq!(figure(&world, r#"router_attempt_failed_total{leg="prefill",fault="no_kv"}"#).await, 1);
        check_blocks(&world, Blocks { released: 0, read: 1 }).await;
    }
}

#[tokio::test]
async fn when_no_prefill_has_transfer_parameters_nothing_is_decoded() {
    let world = World::new(Setup::default()).await;
    for _ in 0..4 {
        world.prefill.next(Prefills::NoKv);
    }
    assert_eq!(refused(&world.complete(BODY).await), (502, "prefill_no_kv".to_owned(), "4"));
    assert_eq!(legs(&world), Legs { prefills: 4, transfers: 0, decodes: 0 });
}

#[tokio::test]
async fn the_kv_of_another_request_is_neither_read_nor_released() {
    let world = World::new(Setup::default()).await;
    world.prefill.next(Prefills::Foreign);
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    assert_eq!(legs(&world), Legs { prefills: 2, transfers: 1, decodes: 1 });
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
    let foreign = |event: &Event| matches!(event, Event::Forgotten { request, .. } if request.contains("test-77"));
    assert_eq!(world.journal.count(foreign), 0);
}

#[tokio::test]
async fn a_prefill_engine_that_breaks_off_is_left_for_another_rank() {
    let world = World::new(Setup::default()).await;
    world.prefill.next(Prefills::Breaks);
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
}

#[tokio::test]
async fn a_prefill_engines_verdict_on_the_request_keeps_its_status_and_body() {
    const VERDICT: &str = r#"{"error":{"message":"prompt is too long","type":"BadRequestError","code":400}}"#;
    let world = World::new(Setup::default()).await;
    world.prefill.next(Prefills::Status(400, VERDICT));
    let answer = world.complete(BODY).await;
    assert_eq!((served(&answer), &*answer.body), ((400, "1"), VERDICT.as_bytes()));
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 0, decodes: 0 });
}

#[tokio::test]
async fn when_all_prefill_engines_are_full_the_client_is_told_when_to_come_back() {
    let world = World::new(Setup { args: "--max-attempts 2", ..Setup::default() }).await;
    for _ in 0..2 {
        world.prefill.next(Prefills::Status(429, "{}"));
    }
    let answer = world.complete(BODY).await;
    assert_eq!(refused(&answer), (429, "prefill_overloaded".to_owned(), "2"));
    assert_eq!(answer.header("retry-after"), "7", "as the engine said");
}

#[tokio::test]
async fn a_rank_that_has_failed_gets_a_pause_and_another_one_none() {
    let world = World::new(Setup { args: "--retry-initial-backoff-ms 60000", ..Setup::default() }).await;
    world.prefill.next(Prefills::Status(500, "{}"));
    assert_eq!(served(&world.complete(BODY).await), (200, "2"), "rank 1 at once");
    world.prefill.next(Prefills::Status(500, "{}"));
    world.prefill.next(Prefills::Status(500, "{}"));
    let waiting = world.start(BODY);
    let failed = r#"router_attempt_failed_total{leg="prefill",fault="failed"}"#;
    while figure(&world, failed).await != 3 {
        tokio::task::yield_now().await;
    }
    // Both ranks have failed it: without a pause the third try would come within some turns of the thread that all share.
    for _ in 0..20 {
        world.get("/livez").await;
    }
    assert_eq!(legs(&world).prefills, 4, "the third try of this request waits");
    waiting.abort();
}

#[tokio::test]
async fn blocks_that_cannot_be_moved_are_released() {
    let world = World::new(Setup::default()).await;
    world.prefill.next(Prefills::Unsupported);
    assert_eq!(refused(&world.complete(BODY).await), (502, "prefill_answer_invalid".to_owned(), "1"));
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 0, decodes: 0 });
    check_blocks(&world, Blocks { released: 1, read: 0 }).await;
}

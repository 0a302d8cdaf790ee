//! What bounds the tries of one request, and of all of them.

use crate::engines::Prefills;
use crate::journal::Event;
use crate::sidecars::Transfers;
use crate::view::{BODY, Blocks, check_blocks, figure, legs, refused, served};
use crate::world::{Setup, World};

#[tokio::test]
async fn a_spent_retry_budget_makes_the_first_failure_final() {
    let world = World::new(Setup { args: "--retry-budget 0 --retry-floor 0", ..Setup::default() }).await;
    world.prefill.next(Prefills::Status(500, "{}"));
    assert_eq!(refused(&world.complete(BODY).await), (502, "prefill_failed".to_owned(), "1"));
    assert_eq!(figure(&world, r#"router_failure_step_total{step="budget_spent"}"#).await, 1);
    assert_eq!(served(&world.complete(BODY).await), (200, "1"));
}

#[tokio::test]
async fn the_retry_budget_is_one_for_all_requests() {
    let world = World::new(Setup {
        args: "--retry-budget 0 --retry-floor 1 --max-attempts 20 --retry-initial-backoff-ms 0",
        ..Setup::default()
    })
    .await;
    for _ in 0..100 {
        world.decode_sidecar().next(Transfers::Problem(502, "peer_unreachable", "new_prefill"));
    }
    let mut attempts = Vec::new();
    for _ in 0..3 {
        let answer = world.complete(BODY).await;
        attempts.push(answer.header("x-kvgate-attempts").parse::<usize>().unwrap_or_default());
    }
    let retries = attempts.iter().sum::<usize>() - attempts.len();
    assert!(attempts.iter().all(|attempts| *attempts <= 20), "{attempts:?}");
    assert!((10..30).contains(&retries), "ten seconds' worth, and what the test's own time adds: {attempts:?}");
    check_blocks(&world, Blocks { released: retries + 3, read: 0 }).await;
}

#[tokio::test]
async fn the_request_deadline_covers_all_attempts() {
    // No attempt lasts as long as the deadline.
    let args = "--request-deadline-ms 300 --transfer-deadline-ms 50 --prefill-deadline-ms 50 --max-attempts 100 \
        --retry-floor 100 --retry-initial-backoff-ms 0";
    let world = World::new(Setup { args, ..Setup::default() }).await;
    for _ in 0..100 {
        world.prefill.next(Prefills::Hangs);
    }
    let answer = world.complete(BODY).await;
    let (status, code, _) = refused(&answer);
    assert_eq!((status, &*code), (504, "request_timeout"));
    assert!(legs(&world).prefills > 1, "{:?}", legs(&world));
}

#[tokio::test]
async fn a_request_that_no_rank_can_take_says_which_way_it_would_have_gone() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().set(0, "degraded");
    world.decode_sidecar().set(1, "degraded");
    world.wait_until_ready(2).await;
    for (body, path) in [(BODY, "pd"), (r#"{"prompt":"p","prompt_logprobs":1}"#, "local")] {
        let answer = world.complete(body).await;
        assert_eq!(refused(&answer), (503, "not_ready".to_owned(), ""));
        assert_eq!((answer.header("x-kvgate-path"), answer.header("retry-after")), (path, "1"));
    }
}

#[tokio::test]
async fn a_router_that_is_full_says_so_in_json() {
    let world = World::new(Setup { args: "--max-in-flight 1 --max-queue 0", ..Setup::default() }).await;
    world.prefill.next(Prefills::Hangs);
    let first = world.start(BODY);
    world.journal.wait_for("the first prefill", 1, |event| matches!(event, Event::Prefill { .. })).await;
    let answer = world.complete(BODY).await;
    assert_eq!(refused(&answer), (429, "queue_full".to_owned(), ""));
    assert_eq!(answer.header("retry-after"), "1");
    first.abort();
}

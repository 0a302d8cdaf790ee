//! The client leaves, at each step: what is behind it is cancelled, and P's blocks are not left to their lease.

use crate::engines::{Decodes, Prefills};
use crate::journal::Event;
use crate::sidecars::Transfers;
use crate::view::{BODY, Blocks, Legs, check_blocks, check_finished, figure, legs};
use crate::world::{Setup, World};

async fn until_gone(world: &World) {
    while world.get("/readyz").await.json().get("inside").is_none_or(|inside| *inside != 0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn in_the_queue_and_nothing_is_sent() {
    let world = World::new(Setup { args: "--max-in-flight 1", ..Setup::default() }).await;
    world.prefill.next(Prefills::Hangs);
    let first = world.start(BODY);
    world.journal.wait_for("the first prefill", 1, |event| matches!(event, Event::Prefill { .. })).await;
    let waiting = world.start(BODY);
    while world.get("/readyz").await.json().get("inside").is_none_or(|inside| *inside != 2) {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    first.abort();
    until_gone(&world).await;
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 0, decodes: 0 });
}

#[tokio::test]
async fn during_the_prefill_and_it_is_cancelled() {
    let world = World::new(Setup::default()).await;
    world.prefill.next(Prefills::Hangs);
    let client = world.start(BODY);
    world.journal.wait_for("the prefill", 1, |event| matches!(event, Event::Prefill { .. })).await;
    client.abort();
    world.journal.wait_for("the cancellation", 1, |event| matches!(event, Event::PrefillCancelled)).await;
    until_gone(&world).await;
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 0, decodes: 0 });
    check_blocks(&world, Blocks::default()).await;
    let gone = r#"router_request_ended_total{outcome="client_gone",path="pd"}"#;
    assert_eq!(figure(&world, gone).await, 1);
}

#[tokio::test]
async fn during_the_transfer_and_the_blocks_are_released_once_it_is_over() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Hangs);
    let client = world.start(BODY);
    world.journal.wait_for("the transfer", 1, |event| matches!(event, Event::Asked { .. })).await;
    assert_eq!(world.journal.count(|event| matches!(event, Event::Released { .. })), 0);
    client.abort();
    check_blocks(&world, Blocks { released: 1, read: 0 }).await;
    let events = world.journal.events();
    let finished = events.iter().position(|event| matches!(event, Event::Finished { .. })).unwrap();
    let released = events.iter().position(|event| matches!(event, Event::Released { .. })).unwrap();
    assert!(finished < released);
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 1, decodes: 0 });
}

#[tokio::test]
async fn between_two_tries_and_the_blocks_are_released() {
    let world =
        World::new(Setup { args: "--retry-initial-backoff-ms 60000 --retry-max-backoff-ms 60000", ..Setup::default() })
            .await;
    world.decode_sidecar().next(Transfers::Problem(502, "transfer_failed", "same_target"));
    let client = world.start(BODY);
    let failed = r#"router_attempt_failed_total{leg="transfer",fault="refused"}"#;
    while figure(&world, failed).await != 1 {
        tokio::task::yield_now().await;
    }
    client.abort();
    check_blocks(&world, Blocks { released: 1, read: 0 }).await;
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 1, decodes: 0 });
}

#[tokio::test]
async fn before_the_first_byte_and_the_decode_is_cancelled_and_its_transfer_ended() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::Hangs);
    let client = world.start(BODY);
    world.journal.wait_for("the decode", 1, |event| matches!(event, Event::Decode { .. })).await;
    client.abort();
    world.journal.wait_for("the cancellation", 1, |event| matches!(event, Event::DecodeCancelled)).await;
    check_finished(&world, 1).await;
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
}

#[tokio::test]
async fn in_the_middle_of_a_stream_and_the_decode_is_cancelled_and_its_transfer_ended() {
    let world = World::new(Setup::default()).await;
    let (tx, answer) = world.streaming("data: {}\n\n").await;
    drop(answer);
    world.journal.wait_for("the cancellation", 1, |event| matches!(event, Event::DecodeCancelled)).await;
    check_finished(&world, 1).await;
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
    drop(tx);
}

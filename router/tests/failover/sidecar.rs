//! A sidecar refuses, or is gone.

use std::time::Duration;

use crate::journal::Event;
use crate::sidecars::Transfers;
use crate::view::{BODY, Blocks, Legs, check_blocks, check_finished, figure, legs, refused, served, tries_of};
use crate::world::{Setup, World};

#[tokio::test]
async fn a_transfer_that_fails_is_asked_for_again_with_the_same_prefill() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Problem(502, "transfer_failed", "same_target"));
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 2, decodes: 1 });
    assert_eq!(figure(&world, r#"router_attempt_failed_total{leg="transfer",fault="refused"}"#).await, 1);
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
}

#[tokio::test]
async fn a_rank_without_room_is_left_for_another_decode_rank_with_the_same_prefill() {
    let world = World::new(Setup { args: "--rank-pairing any", ..Setup::default() }).await;
    world.decode_sidecar().next(Transfers::Problem(429, "staging_full", "other_target"));
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 2, decodes: 1 });
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
}

/// The sidecar counts P's lease from the age that it is told. When the question had to wait somewhere, that age was too young.
#[tokio::test]
async fn a_receipt_whose_question_was_on_its_way_for_a_lease_decodes_nothing() {
    let (lease, all) = ("--kv-lease 2s", Duration::from_millis(2_100));
    let world = World::new(Setup { args: lease, ..Setup::default() }).await;
    world.decode_sidecar().next(Transfers::After { all, worked: Duration::from_millis(50) });
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    assert_eq!(legs(&world), Legs { prefills: 2, transfers: 2, decodes: 1 });
    // Both had landed: P was told of each, and each one's slots are given back.
    check_blocks(&world, Blocks { released: 0, read: 2 }).await;
    check_finished(&world, 2).await;
    assert_eq!(figure(&world, r#"router_attempt_failed_total{leg="transfer",fault="timeout"}"#).await, 1);

    let world = World::new(Setup { args: lease, ..Setup::default() }).await;
    world.decode_sidecar().next(Transfers::After { all, worked: all });
    assert_eq!(served(&world.complete(BODY).await), (200, "1"), "a sidecar that works keeps the lease with heartbeats");
}

#[tokio::test]
async fn a_lost_lease_means_a_new_prefill_and_the_old_one_is_released() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Problem(409, "lease_expired", "new_prefill"));
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    assert_eq!(legs(&world), Legs { prefills: 2, transfers: 2, decodes: 1 });
    check_blocks(&world, Blocks { released: 1, read: 1 }).await;
}

#[tokio::test]
async fn a_refusal_for_good_ends_the_request_and_releases_its_prefill() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Problem(400, "params_invalid", "never"));
    assert_eq!(refused(&world.complete(BODY).await), (502, "params_invalid".to_owned(), "1"));
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 1, decodes: 0 });
    check_blocks(&world, Blocks { released: 1, read: 0 }).await;
}

#[tokio::test]
async fn when_no_rank_has_room_the_client_is_told_when_to_come_back() {
    let world = World::new(Setup { ranks: 1, ..Setup::default() }).await;
    world.decode_sidecar().next(Transfers::Problem(429, "staging_full", "other_target"));
    let answer = world.complete(BODY).await;
    assert_eq!(refused(&answer), (429, "staging_full".to_owned(), "1"));
    assert_eq!(answer.header("retry-after"), "1");
    check_blocks(&world, Blocks { released: 1, read: 0 }).await;
}

#[tokio::test]
async fn when_every_transfer_fails_each_prefill_is_released() {
    let world = World::new(Setup::default()).await;
    for _ in 0..4 {
        world.decode_sidecar().next(Transfers::Problem(502, "peer_unreachable", "new_prefill"));
    }
    assert_eq!(refused(&world.complete(BODY).await), (502, "peer_unreachable".to_owned(), "4"));
    assert_eq!(legs(&world), Legs { prefills: 4, transfers: 4, decodes: 0 });
    check_blocks(&world, Blocks { released: 4, read: 0 }).await;
}

#[tokio::test]
async fn a_decode_pod_whose_sidecar_is_gone_is_left_for_another_with_the_same_prefill() {
    let mut world = World::new(Setup { ranks: 1, decode_pods: 2, ..Setup::default() }).await;
    world.take_away_decode_sidecar(0).await;
    let tries = tries_of(&world, 4).await;
    assert!((5..=8).contains(&tries), "{tries}");
    assert_eq!(legs(&world), Legs { prefills: 4, transfers: 4, decodes: 4 });
    check_blocks(&world, Blocks { released: 0, read: 4 }).await;
}

#[tokio::test]
async fn when_the_only_decode_sidecar_is_gone_the_prefill_is_released() {
    let mut world = World::new(Setup { ranks: 1, ..Setup::default() }).await;
    world.take_away_decode_sidecar(0).await;
    let (status, code, _) = refused(&world.complete(BODY).await);
    assert_eq!((status, &*code), (502, "sidecar_unreachable"));
    let Legs { prefills, decodes, .. } = legs(&world);
    assert_eq!(decodes, 0);
    check_blocks(&world, Blocks { released: prefills, read: 0 }).await;
}

#[tokio::test]
async fn no_client_sees_that_the_prefill_pods_sidecar_is_gone() {
    let mut world = World::new(Setup::default()).await;
    world.take_away_prefill_sidecar().await;
    assert_eq!(served(&world.complete(BODY).await), (200, "1"));
    check_finished(&world, 1).await;
}

#[tokio::test]
async fn an_answer_that_is_lost_ends_that_transfer_before_its_prefill_is_released() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Breaks);
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    assert_eq!(legs(&world), Legs { prefills: 2, transfers: 2, decodes: 1 });
    check_blocks(&world, Blocks { released: 1, read: 1 }).await;
    let events = world.journal.events();
    let ended = |event: &Event| matches!(event, Event::Finished { transfer } if transfer == "t-test-1-1");
    let released = |event: &Event| matches!(event, Event::Released { .. });
    assert!(events.iter().position(ended).unwrap() < events.iter().position(released).unwrap());
}

#[tokio::test]
async fn a_receipt_for_another_rank_decodes_nothing() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::WrongReceipt);
    assert_eq!(refused(&world.complete(BODY).await), (502, "receipt_invalid".to_owned(), "1"));
    assert_eq!(legs(&world), Legs { prefills: 1, transfers: 1, decodes: 0 });
    check_blocks(&world, Blocks { released: 0, read: 1 }).await;
    check_finished(&world, 1).await;
}

#[tokio::test]
async fn a_prefix_hit_of_an_earlier_try_is_not_reported_as_one_of_the_request() {
    let hits = |world: &World| {
        let body: serde_json::Value = serde_json::from_slice(&world.journal.bodies(true).pop().unwrap()).unwrap();
        body.pointer("/kv_transfer_params/remote_prefill_cached_tokens").unwrap().as_u64().unwrap()
    };
    // The fake finds 16 tokens in its cache with every try but a request's first.
    let world = World::new(Setup { ranks: 1, ..Setup::default() }).await;
    world.decode_sidecar().next(Transfers::Problem(409, "lease_expired", "new_prefill"));
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    assert_eq!(hits(&world), 0, "the same rank: what it found is the first try's own");
    let world = World::new(Setup { ranks: 2, ..Setup::default() }).await;
    world.prefill.next(crate::engines::Prefills::Status(500, "{}"));
    assert_eq!(served(&world.complete(BODY).await), (200, "2"));
    assert_eq!(hits(&world), 16, "another rank: it is what a single engine would have said");
}

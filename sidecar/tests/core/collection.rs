//! Invariant C: a landed slot set is freed only for one of three reasons, however late D is.

use std::time::Duration;

use sidecar::model::{Freed, TransferPhase};
use vllm_wire::notif;

use crate::world::{SLOTS, Setup, World};

#[tokio::test(start_paused = true)]
async fn a_slot_that_d_collects_late_is_not_reused_while_the_router_claims_it() {
    let world = World::ready(Setup::default()).await;
    let all: Vec<u32> = (0..SLOTS).collect();
    let landed = world.land("cmpl-1", &all).await;
    for _ in 0..40 {
        tokio::time::sleep(landed.receipt.collect_by / 3).await;
        assert_eq!(world.pod.claim(&landed.transfer).await.unwrap(), landed.receipt.collect_by);
        assert_eq!(world.refused(world.p.prefill("cmpl-2", &[20])).await, "staging_full");
    }
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await);
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;
    assert_eq!(world.count(|counters| &counters.late_collect), 0);
    world.land("cmpl-3", &all).await;
}

#[tokio::test(start_paused = true)]
async fn with_the_router_dead_heartbeats_of_d_keep_it_and_silence_frees_it() {
    let world = World::ready(Setup::default()).await;
    let all: Vec<u32> = (0..SLOTS).collect();
    let landed = world.land("cmpl-1", &all).await;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.d[0].notify(&*world.net, &landed.params, 0, notif::heartbeat([&landed.receipt.request_id])).await;
        assert_eq!(world.refused(world.p.prefill("cmpl-2", &[20])).await, "staging_full");
    }
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await);
    tokio::time::sleep(Duration::from_secs(27)).await;
    assert_eq!(world.shown(&landed).state, TransferPhase::Landed);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let shown = world.shown(&landed);
    assert_eq!((shown.state, shown.freed), (TransferPhase::Done, Some(Freed::Lapsed)));
    world.land("cmpl-3", &all).await;
    // D comes after all: that is an alarm.
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;
    assert_eq!(world.count(|counters| &counters.late_collect), 1);
    let shown = world.shown(&landed);
    assert_eq!((shown.collected_by.map(|rank| rank.0), shown.freed), (Some(8), Some(Freed::Lapsed)), "not in time");
}

#[tokio::test(start_paused = true)]
async fn after_the_router_s_word_a_quiet_period_passes() {
    let world = World::ready(Setup::default()).await;
    let landed = world.land("cmpl-1", &[1, 2]).await;
    let shown = world.pod.finish(&landed.transfer).await.unwrap();
    assert_eq!(shown.state, TransferPhase::Landed);
    assert_eq!(world.pod.claim(&landed.transfer).await.unwrap_err().code().as_str(), "cancelled");
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(world.figures().await.0, 2);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.figures().await.0, 0);
    let shown = world.pod.finish(&landed.transfer).await.unwrap();
    assert_eq!((shown.state, shown.freed), (TransferPhase::Done, Some(Freed::Finished)), "idempotent");
    assert_eq!(world.count(|counters| &counters.uncollected), 1);
}

#[tokio::test(start_paused = true)]
async fn another_rank_s_word_frees_nothing_and_is_named() {
    let world = World::ready(Setup { dp: 2, ..Setup::default() }).await;
    let landed = world.land("cmpl-1", &[1, 2]).await;
    world.d[1].done(&*world.net, &landed.params).await;
    world.settle().await;
    let shown = world.shown(&landed);
    assert_eq!((shown.state, shown.collected_by.map(|rank| rank.0)), (TransferPhase::Landed, Some(9)));
    assert_eq!(world.count(|counters| &counters.wrong_rank_collect), 1);
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;
    assert_eq!(world.shown(&landed).state, TransferPhase::Done);
}

#[tokio::test(start_paused = true)]
async fn told_twice_is_no_alarm_and_nonsense_is_ignored() {
    let world = World::ready(Setup::default()).await;
    let landed = world.land("cmpl-1", &[1]).await;
    for message in [&b"\xff\xfe"[..], b"", b"HB:", b"unknown:1", b":"] {
        world.d[0].notify(&*world.net, &landed.params, 0, bytes::Bytes::from_static(message)).await;
    }
    world.d[0].done(&*world.net, &landed.params).await;
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;
    assert_eq!(world.shown(&landed).state, TransferPhase::Done);
    assert_eq!(world.count(|counters| &counters.late_collect), 0);
}

//! Following the engine, and the pod's end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kv::readiness::RankState;
use side_channel::Endpoint;
use sidecar::model::{ShutDown, TransferPhase};

use crate::world::{FakeEngine, Setup, World};

#[tokio::test(start_paused = true)]
async fn a_restarted_engine_gets_a_new_session() {
    let mut world = World::ready(Setup::default()).await;
    let landed = world.land("cmpl-1", &[1, 2]).await;
    let before = world.pod.ranks().borrow()[0].clone();
    let at = world.d[0].endpoint.clone();
    world.d.clear();
    world.d.push(FakeEngine::start(&*world.fabrics, &*world.net, "engine-d-2", &at, 1).await);
    world.pages.restarted();
    let changed = |rank: &sidecar::model::RankSnapshot| {
        rank.state == RankState::Ready && rank.engine_id.as_ref().is_some_and(|id| id.as_str() == "engine-d-2")
    };
    let after = world.rank_until("restarted", changed).await;
    assert_ne!(after[0].virtual_engine_id, before.virtual_engine_id, "a fresh id per start");
    assert_eq!(after[0].side_channel, before.side_channel, "at the same place");
    assert_eq!(after[0].staging.used_blocks, 0, "what had landed went with the old engine");
    assert_eq!(world.shown(&landed).state, TransferPhase::Done);
    assert_eq!(world.count(|counters| &counters.engine_restarts), 1);
    let landed = world.land("cmpl-2", &[3]).await;
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-2").await);
}

#[tokio::test(start_paused = true)]
async fn a_health_gap_asks_once_and_the_same_engine_keeps_its_session() {
    let world = World::ready(Setup::default()).await;
    let landed = world.land("cmpl-1", &[1]).await;
    world.pages.healthy(false);
    world.rank_until("degraded", |rank| rank.state == RankState::Degraded).await;
    world.rank_until("gone", |rank| rank.state == RankState::Gone).await;
    assert_eq!(world.refused(world.p.prefill("cmpl-2", &[2])).await, "rank_not_ready");
    world.pages.healthy(true);
    world.all_ready().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.d[0].desk.asked.load(Ordering::Relaxed), 2, "once per start or gap, never on a timer");
    world.pod.claim(&landed.transfer).await.unwrap_err();
    assert_eq!(world.count(|counters| &counters.engine_restarts), 0);
}

#[tokio::test(start_paused = true)]
async fn an_engine_without_side_channel_is_asked_again_until_it_answers() {
    let mut world = World::new(Setup::default()).await;
    let at = world.d[0].endpoint.clone();
    world.d.clear();
    world
        .rank_until("handshaking", |rank| {
            rank.state == RankState::Handshaking && rank.reasons.iter().any(|reason| reason.contains("side channel"))
        })
        .await;
    world.d.push(FakeEngine::start(&*world.fabrics, &*world.net, "late", &at, 1).await);
    world.all_ready().await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_cannot_be_served_is_not_ready_in_words() {
    let world = World::new(Setup::default()).await;
    world.d[0].answer_with(crate::world::HASH, |metadata| metadata.dcp_size = 2);
    let ranks = world.rank_until("degraded", |rank| rank.state == RankState::Degraded).await;
    assert!(ranks[0].reasons[0].contains("dcp_size is 2"), "{:?}", ranks[0].reasons);
    let asked = world.d[0].desk.asked.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.d[0].desk.asked.load(Ordering::Relaxed), asked, "not asked again before it restarts");
}

#[tokio::test(start_paused = true)]
async fn the_load_is_shown() {
    let world = World::ready(Setup::default()).await;
    let rank = world.pod.ranks().borrow()[0].clone();
    assert_eq!(rank.load.running, 0, "label 0 is another rank than global rank 8");
    assert_eq!(rank.staging.capacity_blocks, crate::world::SLOTS);
    assert!(world.pod.alive());
}

#[tokio::test(start_paused = true)]
async fn a_drained_pod_takes_nothing_new_and_ends_when_what_has_landed_is_collected() {
    let world = World::ready(Setup::default()).await;
    let landed = world.land("cmpl-1", &[1]).await;
    let pod = world.pod.clone();
    let end = world.tasks.spawn(async move { pod.shut_down(Duration::from_secs(60)).await });
    world.rank_until("draining", |rank| rank.draining).await;
    assert_eq!(world.refused(world.p.prefill("cmpl-2", &[2])).await, "shutting_down");
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await);
    world.d[0].done(&*world.net, &landed.params).await;
    assert_eq!(end.await.unwrap(), ShutDown::Drained);
    world.tasks.close();
    tokio::time::timeout(Duration::from_secs(5), world.tasks.wait()).await.expect("every task has ended");
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_what_the_router_has_finished() {
    let world = World::ready(Setup::default()).await;
    let landed = world.land("cmpl-1", &[1]).await;
    world.pod.finish(&landed.transfer).await.unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(world.pod.shut_down(Duration::from_secs(60)).await, ShutDown::Drained);
    assert!(begun.elapsed() < Duration::from_secs(1), "the quiet period of 10 s is not waited for");
}

#[tokio::test(start_paused = true)]
async fn past_its_deadline_a_shutdown_cuts_off() {
    let world = World::ready(Setup::default()).await;
    world.land("cmpl-1", &[1]).await;
    assert_eq!(world.pod.shut_down(Duration::from_secs(3)).await, ShutDown::Stopped);
    let error = world.pod.transfer(world.start(world.p.prefill("cmpl-2", &[1]))).await.unwrap_err();
    assert_eq!(error.code().as_str(), "shutting_down");
}

#[tokio::test(start_paused = true)]
async fn a_taken_port_is_named() {
    use sidecar::model::{Role, StartError};
    let world = World::ready(Setup { role: Role::Decode, ..Setup::default() }).await;
    let port = world.pod.side_channel_ports()[0];
    let taken = FakeEngine::start(&*world.fabrics, &*world.net, "x", &Endpoint::new("host", 0), 1).await;
    assert_ne!(taken.endpoint.port, port);
    let error = world.second_pod_at(taken.endpoint.clone()).await.unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }), "{error:?}");
}

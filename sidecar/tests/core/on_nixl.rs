//! The good path on the real thing: NIXL agents, ZMTP over TCP, real time.

use std::sync::Arc;
use std::time::Duration;

use kv::digest::Verify;
use kv::readiness::RankState;
use side_channel::Zmq;
use sidecar::fabrics::NixlFabrics;
use sidecar::model::{Faults, ShutDown, Spoil, TransferPhase};

use crate::sockets::cut_tcp_connections;
use crate::world::{Setup, World};

/// Runs a test of this binary in a process of its own, over tcp; true when this is not that process.
fn in_child_over_tcp(test: &str) -> bool {
    const MARK: &str = "KVGATE_TEST_CHILD";
    if std::env::var_os(MARK).is_some() {
        return false;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(MARK, "1").env("UCX_TLS", "tcp");
    assert!(command.status().unwrap().success(), "{test} in a child");
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefill_of_two_shards_lands_and_is_collected_over_nixl() {
    let Some(api) = nixl_sys::testing::require_nixl() else { return };
    let fabrics = Arc::new(NixlFabrics::new(api));
    let setup = Setup { tp: 2, ..Setup::default() };
    let mut world = World::with(setup, fabrics, Arc::new(Zmq::new()), "127.0.0.1").await;
    world.rank_until("ready", |rank| rank.state == RankState::Ready).await;
    for round in 0..3_u32 {
        let request = format!("cmpl-{round}");
        let landed = world.land(&request, &[round, 7, 8, 9, 40 + round]).await;
        assert!(world.d[0].read(&*world.net, &landed.params, &request).await, "the bytes are P's");
        assert_eq!(world.shown(&landed).state, TransferPhase::Landed);
        world.d[0].done(&*world.net, &landed.params).await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while world.shown(&landed).state != TransferPhase::Done || world.p.dones(&request) != [1, 1] {
            assert!(tokio::time::Instant::now() < deadline, "{:#?}, P: {:?}", world.shown(&landed), world.p.told());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(world.shown(&landed).collected_by.map(|rank| rank.0), Some(8));
    }
    assert!(world.pod.alive());
    assert_eq!(world.count(|counters| &counters.late_collect), 0);
    assert_eq!(world.pod.shut_down(Duration::from_secs(10)).await, ShutDown::Drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lands_over_nixl_is_what_the_source_s_sidecar_reads_over_nixl() {
    let Some(api) = nixl_sys::testing::require_nixl() else { return };
    let fabrics = Arc::new(NixlFabrics::new(api));
    let setup = Setup { tp: 2, verify: Verify::Full, ..Setup::default() };
    let world = World::with(setup, fabrics, Arc::new(Zmq::new()), "127.0.0.1").await;
    world.rank_until("ready", |rank| rank.state == RankState::Ready).await;
    let source = world.start_source().await;
    for round in 0..3_u32 {
        let request = format!("cmpl-{round}");
        let start = world.sourced(world.p.prefill(&request, &[round, 7, 8, 9, 40 + round]));
        let landed = world.pod.transfer(start).await.unwrap();
        let digest = landed.receipt.digest.unwrap();
        assert_eq!((digest.blocks, digest.bytes), (5, landed.receipt.bytes));
        assert!(world.d[0].read(&*world.net, &landed.params, &request).await, "the bytes are P's");
        world.d[0].done(&*world.net, &landed.params).await;
    }
    assert_eq!(source.shut_down(Duration::from_secs(10)).await, ShutDown::Drained);
    let world = world.again(Faults { spoil: Some(Spoil::Flip), ..Faults::default() }).await;
    world.all_ready().await;
    let source = world.start_source().await;
    let error = world.pod.transfer(world.sourced(world.p.prefill("cmpl-9", &[1, 2]))).await.unwrap_err();
    assert_eq!(error.code().as_str(), "digest_mismatch", "{error}");
    assert_eq!(world.pod.shut_down(Duration::from_secs(10)).await, ShutDown::Drained);
    assert_eq!(source.shut_down(Duration::from_secs(10)).await, ShutDown::Drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_p_that_is_lost_while_idle_costs_one_attempt_and_the_next_pull_lands() {
    let Some(api) = nixl_sys::testing::require_nixl() else { return };
    // In a process of its own: every connection of it is cut.
    if in_child_over_tcp("on_nixl::a_connection_to_p_that_is_lost_while_idle_costs_one_attempt_and_the_next_pull_lands")
    {
        return;
    }
    let (fabrics, net) = (Arc::new(NixlFabrics::new(api)), Arc::new(Zmq::new()));
    let mut world = World::with(Setup { slots: 64, ..Setup::default() }, fabrics, net, "127.0.0.1").await;
    world.rank_until("ready", |rank| rank.state == RankState::Ready).await;
    world.land("cmpl-0", &[0, 1, 2]).await;
    for round in 1..=3 {
        // With the first cut, P may not have heard yet that "cmpl-0" has landed.
        assert!(cut_tcp_connections() > 0, "there was a connection");
        let request = format!("cmpl-{round}");
        let params = world.p.prefill(&request, &[round, 10, 20]);
        let mut attempts = 1;
        while let Err(error) = world.pod.transfer(world.start(params.clone())).await {
            assert_eq!((error.code().as_str(), error.code().retry().as_str()), ("transfer_failed", "same_target"));
            attempts += 1;
            assert!(attempts <= 2, "{error}");
        }
        println!("round {round}: landed by attempt {attempts}");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while world.p.dones(&request) != [1] {
            assert!(tokio::time::Instant::now() < deadline, "P was not told: {:?}", world.p.told());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while world.p.dones("cmpl-0") != [1] {
        assert!(tokio::time::Instant::now() < deadline, "P was not told of what had landed before the cut");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.pod.shut_down(Duration::ZERO).await;
}

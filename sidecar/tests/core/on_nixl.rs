//! The good path on the real thing: NIXL agents, ZMTP over TCP, real time.

use std::sync::Arc;
use std::time::Duration;

use kv::digest::Verify;
use kv::readiness::RankState;
use side_channel::Zmq;
use sidecar::fabrics::NixlFabrics;
use sidecar::model::{Faults, ShutDown, Spoil, TransferPhase};

use crate::world::{Setup, World};

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

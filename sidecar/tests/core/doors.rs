//! Where D finds the ranks, and P is said to be: ports that somebody else has, hosts that lead nowhere.

use std::sync::Arc;

use kv::ids::DpRank;
use kv::readiness::RankState;
use side_channel::{Answer, Answered, Endpoint};
use sidecar::model::{RankSnapshot, StartError};
use sidecar::pod::Pod;
use tokio_util::sync::CancellationToken;

use crate::world::{OFFSET, Setup, World};

/// Has a port and says nothing.
struct Mute;

impl Answer for Mute {
    fn answer(&self, _: &[u8]) -> Answered {
        Answered::Ignore
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_somebody_else_has_costs_its_rank_until_it_is_free() {
    let mut world = World::ready(Setup { dp: 8, ..Setup::default() }).await;
    world.pod.shut_down(std::time::Duration::ZERO).await;
    let base = Endpoint::new("host", 40_000);
    let other = world.net.serve(&base.with_port(40_003), Arc::new(Mute)).await.unwrap();
    let config = sidecar::model::PodConfig { side_channel_listen: base, ..world.config.clone() };
    world.pod = Pod::start(config, world.parts.clone(), &world.tasks, CancellationToken::new()).await.unwrap();
    assert_eq!(world.pod.side_channel_ports(), (40_000..40_008).collect::<Vec<u16>>());

    let ours = |rank: &RankSnapshot| rank.dp_rank == DpRank(OFFSET + 3);
    let expected = |rank: &RankSnapshot| (rank.state == RankState::Ready) != ours(rank) && rank.engine_id.is_some();
    let ranks = world.rank_until("ready but one", expected).await;
    let reasons = ranks[3].reasons.join("; ");
    assert_eq!(ranks[3].state, RankState::Degraded);
    assert!(reasons.contains("listen on host:40003 for the side channel of DP rank 11: "), "{reasons}");
    assert!(reasons.contains("in use"), "{reasons}");
    let start = |rank: u16, request: &str, block: u32| {
        let mut start = world.start(world.p.prefill(request, &[block]));
        start.dp_rank = DpRank(rank);
        start
    };
    let error = world.pod.transfer(start(11, "cmpl-11", 1)).await.unwrap_err();
    assert_eq!((error.code().as_str(), error.code().retry().as_str()), ("rank_not_ready", "other_target"));
    assert!(error.to_string().contains("host:40003"), "{error}");
    for rank in [8, 9, 10, 12, 15] {
        let request = format!("cmpl-{rank}");
        let landed = world.pod.transfer(start(rank, &request, u32::from(rank))).await.unwrap();
        let engine = &world.d[usize::from(rank - OFFSET)];
        assert!(engine.read(&*world.net, &landed.params, &request).await, "rank {rank}");
    }

    other.stop().await;
    world.all_ready().await;
    let landed = world.pod.transfer(start(11, "cmpl-11", 1)).await.unwrap();
    assert_eq!(landed.params.remote_port, 40_003);
    assert!(world.d[3].read(&*world.net, &landed.params, "cmpl-11").await);
}

#[tokio::test(start_paused = true)]
async fn when_no_rank_has_a_place_the_pod_does_not_start_and_says_where() {
    let world = World::ready(Setup { dp: 2, ..Setup::default() }).await;
    let base = Endpoint::new("host", 40_000);
    let _first = world.net.serve(&base, Arc::new(Mute)).await.unwrap();
    let _second = world.net.serve(&base.with_port(40_001), Arc::new(Mute)).await.unwrap();
    let error = world.second_pod_at(base).await.unwrap_err();
    assert!(matches!(error, StartError::Listen { rank: DpRank(OFFSET), .. }), "{error:?}");
    assert_eq!(error.to_string(), "listen on host:40000 for the side channel of DP rank 8");
}

#[tokio::test(start_paused = true)]
async fn a_prefill_engine_that_calls_itself_by_a_name_of_this_pod_is_told_what_to_set() {
    let world = World::ready(Setup::default()).await;
    for host in ["localhost", "127.0.0.1", "0.0.0.0", "::1", "::"] {
        let mut params = world.p.prefill("cmpl-1", &[1]);
        // Unset, VLLM_NIXL_SIDE_CHANNEL_HOST is localhost.
        (params.remote_host, params.remote_port) = (host.to_owned(), 5600);
        let error = world.pod.transfer(world.start(params)).await.unwrap_err();
        assert_eq!(error.code().as_str(), "peer_unreachable", "{host}");
        assert!(error.to_string().contains("VLLM_NIXL_SIDE_CHANNEL_HOST must be an address of its own pod"), "{error}");
    }
    let mut params = world.p.prefill("cmpl-1", &[1]);
    params.remote_host = "10.11.12.13".to_owned();
    let error = world.pod.transfer(world.start(params)).await.unwrap_err();
    assert!(!error.to_string().contains("VLLM_NIXL"), "somewhere else nobody answered: {error}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_listens_elsewhere_is_asked_for_where_it_listens() {
    let mut world = World::new(Setup { dp: 2, ..Setup::default() }).await;
    world.d.truncate(1);
    let waits = |rank: &RankSnapshot| {
        rank.state == RankState::Ready || !rank.reasons.is_empty() && rank.reasons[0].contains("ask")
    };
    let ranks = world.rank_until("asked", waits).await;
    let port = world.config.engine_side_channel.port + OFFSET + 1;
    let reasons = ranks[1].reasons.join("; ");
    assert!(reasons.contains(&format!("host:{port}")), "the rank's own port: {reasons}");
    assert!(reasons.contains("--engine-side-channel must name"), "{reasons}");
    world.rank_until("ready or not", |rank| (rank.dp_rank == DpRank(OFFSET)) == (rank.state == RankState::Ready)).await;
}

//! What cannot be done is refused with its code, and leaves nothing behind.

use std::time::Duration;

use kv::blocks::GroupedBlocks;
use kv::ids::{BlockId, DpRank, EngineId};
use side_channel::Endpoint;
use sidecar::model::{Role, TransferPhase};

use crate::world::{FakeEngine, HASH, POOL, SLOTS, Setup, World};

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_fit_is_refused_in_words() {
    let world = World::ready(Setup::default()).await;
    let start = || world.start(world.p.prefill("cmpl-1", &[1]));
    world.p.answer_with(&HASH.replace('0', "f"), |_| {});
    let error = world.pod.transfer(start()).await.unwrap_err();
    assert_eq!(error.code().as_str(), "layout_mismatch");
    assert!(error.to_string().contains("compatibility hash"), "{error}");
    world.p.answer_with(HASH, |metadata| metadata.block_size = 8);
    let error = world.pod.transfer(start()).await.unwrap_err();
    assert_eq!(error.code().as_str(), "layout_mismatch");
    assert!(error.to_string().contains("block size in tokens is 16 here, 8 there"), "{error}");
    world.p.answer_with(HASH, |metadata| metadata.ssm_sizes = (1, 2));
    assert_eq!(world.pod.transfer(start()).await.unwrap_err().code().as_str(), "version_unsupported");
    world.p.answer_with(HASH, |metadata| metadata.engine_id = EngineId::new("another"));
    assert_eq!(world.pod.transfer(start()).await.unwrap_err().code().as_str(), "peer_changed");
    world.p.answer_with(HASH, |metadata| metadata.agent_metadata = b"junk".to_vec().into());
    assert_eq!(world.pod.transfer(start()).await.unwrap_err().code().as_str(), "peer_unreachable");
    // A failure is not remembered.
    world.p.answer_with(HASH, |_| {});
    world.pod.transfer(start()).await.unwrap();
    assert_eq!(world.figures().await.0, 1);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_peer_is_named() {
    let world = World::ready(Setup::default()).await;
    let mut params = world.p.prefill("cmpl-1", &[1]);
    params.remote_port = 9;
    let error = world.pod.transfer(world.start(params)).await.unwrap_err();
    assert_eq!(error.code().as_str(), "peer_unreachable");
    assert!(error.to_string().contains("host:9"), "{error}");
    assert_eq!(world.figures().await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn params_that_would_kill_an_engine_do_not_get_that_far() {
    let mut world = World::ready(Setup::default()).await;
    let good = world.p.prefill("cmpl-1", &[1, 2, 3]);
    let blocks = |lists: &[&[u32]]| {
        GroupedBlocks::new(lists.iter().map(|list| list.iter().copied().map(BlockId).collect()).collect()).unwrap()
    };
    let bad: [(&str, GroupedBlocks, u64); 4] = [
        ("too few blocks", blocks(&[&[1, 2]]), 90),
        ("too many blocks", blocks(&[&[1, 2, 3, 4]]), 90),
        ("a group too many", blocks(&[&[1, 2, 3], &[4, 5, 6]]), 90),
        ("a block that P does not have", blocks(&[&[1, 2, POOL]]), 90),
    ];
    for (what, remote_block_ids, remote_num_tokens) in bad {
        let mut params = good.clone();
        (params.remote_block_ids, params.remote_num_tokens) = (remote_block_ids, remote_num_tokens);
        assert_eq!(world.refused(params).await, "params_invalid", "{what}");
    }
    let mut params = good.clone();
    params.tp_size = 2;
    assert_eq!(world.refused(params).await, "params_invalid");
    let mut params = good.clone();
    params.transfer_mode = Some("push".to_owned());
    assert_eq!(world.refused(params).await, "params_invalid");
    let mut params = good.clone();
    params.pp_size = 2;
    assert_eq!(world.refused(params).await, "params_invalid");
    assert_eq!(world.figures().await, (0, 0));
    assert_eq!(world.p.dones("cmpl-1"), [0], "N: a refused attempt may be retried");
}

#[tokio::test(start_paused = true)]
async fn foreign_ranks_are_answered_with_the_owned_ones() {
    let world = World::ready(Setup { dp: 2, ..Setup::default() }).await;
    for rank in [0, 7, 10] {
        let mut start = world.start(world.p.prefill("cmpl-1", &[1]));
        start.dp_rank = DpRank(rank);
        let error = world.pod.transfer(start).await.unwrap_err();
        assert_eq!(error.code().as_str(), "rank_unknown");
        assert!(error.to_string().ends_with("which owns ranks 8 to 9"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefill_pod_pulls_nothing() {
    let world = World::ready(Setup { role: Role::Prefill, ..Setup::default() }).await;
    assert_eq!(world.refused(world.p.prefill("cmpl-1", &[1])).await, "params_invalid");
    assert!(world.pod.side_channel_ports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_rank_that_is_not_ready_says_why() {
    let world = World::new(Setup::default()).await;
    world.pages.version("0.11.0");
    let error = world.pod.transfer(world.start(world.p.prefill("cmpl-1", &[1]))).await.unwrap_err();
    assert_eq!(error.code().as_str(), "rank_not_ready");
    world.rank_until("degraded", |rank| rank.state == kv::readiness::RankState::Degraded).await;
    let error = world.pod.transfer(world.start(world.p.prefill("cmpl-1", &[1]))).await.unwrap_err();
    assert!(error.to_string().contains("vLLM \"0.11.0\" is not supported"), "{error}");
    let asked = world.d[0].desk.asked.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(asked, 0, "an engine of an unknown version is not asked");
}

#[tokio::test(start_paused = true)]
async fn a_full_arena_is_waited_for_in_order_and_then_refused() {
    let world = World::ready(Setup::default()).await;
    let all: Vec<u32> = (0..SLOTS).collect();
    let landed = world.land("cmpl-1", &all).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(world.refused(world.p.prefill("cmpl-2", &[20])).await, "staging_full");
    assert_eq!(begun.elapsed().as_secs(), 2);
    let transfer = world.pod.begin(world.start(world.p.prefill("cmpl-3", &[21]))).await.unwrap();
    world.settle().await;
    assert_eq!(world.pod.get(&transfer).unwrap().state, TransferPhase::Queued);
    world.d[0].done(&*world.net, &landed.params).await;
    let shown = world.pod.wait(&transfer, Duration::from_secs(5)).await.unwrap();
    assert_eq!(shown.state, TransferPhase::Landed);
    assert!(shown.stages.queued.unwrap() >= Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn more_than_the_arena_is_refused_at_once() {
    let world = World::ready(Setup::default()).await;
    let blocks: Vec<u32> = (0..=SLOTS).collect();
    let begun = tokio::time::Instant::now();
    assert_eq!(world.refused(world.p.prefill("cmpl-1", &blocks)).await, "request_exceeds_staging");
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_restarted_is_not_read_from() {
    let mut world = World::ready(Setup::default()).await;
    let old = world.p.prefill("cmpl-1", &[1]);
    world.land("cmpl-0", &[0]).await;
    let at = world.p.endpoint.clone();
    drop(std::mem::replace(
        &mut world.p,
        FakeEngine::start(&*world.fabrics, &*world.net, "new", &Endpoint::new("host", 0), 1).await,
    ));
    let again = FakeEngine::start(&*world.fabrics, &*world.net, "engine-p2", &at, 1).await;
    assert_eq!(world.refused(old.clone()).await, "transfer_failed", "the agent that was known is gone");
    assert_eq!(world.refused(old).await, "peer_changed", "then it is asked who is there");
    world.pod.transfer(world.start(again.prefill("cmpl-2", &[1]))).await.unwrap();
}

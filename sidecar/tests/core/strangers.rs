//! Peers that do not fit, requests of the same name, and engines that come and go.

use kv::readiness::RankState;
use vllm_wire::handshake::AgentMetadata;

use crate::world::{FakeEngine, HASH, Setup, World};

#[tokio::test(start_paused = true)]
async fn every_difference_of_layout_is_refused_in_words_before_anything_is_read() {
    type Change = fn(&mut AgentMetadata);
    let another = HASH.replace('0', "f");
    let cases: [(&str, &str, Change, &str); 7] = [
        ("block size", HASH, |p| p.block_size *= 2, "block size in tokens is 16 here, 32 there"),
        (
            "dtype",
            HASH,
            |p| p.block_lens.iter_mut().chain(&mut p.block_strides).for_each(|len| *len *= 2),
            "region 0: block length differs",
        ),
        (
            "back end",
            HASH,
            |p| p.attn_backend_name = "FLASH_ATTN".to_owned(),
            "attention backend is \"CPU_ATTN\" here, \"FLASH_ATTN\" there",
        ),
        ("layout", HASH, |p| p.kv_cache_layout = "LHBNC".to_owned(), "KV layout is \"LBHNC\" here, \"LHBNC\" there"),
        (
            "layers",
            HASH,
            |p| p.region_names = Some(vec!["layers.0".to_owned(), "layers.1".to_owned(), "layers.9".to_owned()]),
            "region 2: name differs",
        ),
        (
            "blocks",
            HASH,
            |p| p.physical_blocks_per_logical_kv_block = 1,
            "kernel blocks per logical block is 2 here, 1 there",
        ),
        ("model revision", &another, |_| {}, "compatibility hash is f123456789"),
    ];
    let mut world = World::ready(Setup::default()).await;
    for (what, hash, change, words) in cases {
        world.p.answer_with(hash, change);
        let error = world.pod.transfer(world.start(world.p.prefill("cmpl-1", &[1]))).await.unwrap_err();
        assert_eq!(error.code().as_str(), "layout_mismatch", "{what}: {error}");
        assert!(error.to_string().contains(words), "{what}: {error}");
    }
    let mut params = world.p.prefill("cmpl-1", &[1]);
    params.tp_size = 4;
    let error = world.pod.transfer(world.start(params)).await.unwrap_err();
    assert!(error.to_string().contains("tp_size is 4, this pod's is 1"), "{error}");
    assert_eq!(world.figures().await, (0, 0));
    assert!(world.p.told().iter().all(Vec::is_empty), "P has heard nothing, and its blocks are still good");
    world.p.answer_with(HASH, |_| {});
    world.land("cmpl-1", &[1]).await;
}

#[tokio::test(start_paused = true)]
async fn two_requests_that_clients_gave_one_name_share_nothing() {
    let mut world = World::ready(Setup::default()).await;
    let (first, second) =
        (world.start(world.p.prefill("cmpl-1", &[1, 2])), world.start(world.p.prefill("cmpl-2", &[3, 4])));
    assert_eq!(first.request_label, second.request_label);
    let (first, second) = tokio::join!(world.pod.transfer(first), world.pod.transfer(second));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_ne!((&first.transfer, &first.receipt.request_id), (&second.transfer, &second.receipt.request_id));
    assert!(world.d[0].read(&*world.net, &first.params, "cmpl-1").await);
    // The end of one is not the end of the other.
    world.pod.finish(&first.transfer).await.unwrap();
    world.d[0].done(&*world.net, &first.params).await;
    world.settle().await;
    assert!(world.d[0].read(&*world.net, &second.params, "cmpl-2").await);
    assert_eq!(world.figures().await, (2, 0));
    assert_eq!((world.p.dones("cmpl-1"), world.p.dones("cmpl-2")), (vec![1], vec![1]));
}

#[tokio::test(start_paused = true)]
async fn a_decode_engine_that_restarts_five_times_is_ready_exactly_when_a_pull_works() {
    let mut world = World::ready(Setup::default()).await;
    let at = world.d[0].endpoint.clone();
    for round in 0..5 {
        let (before, request) = (format!("engine-d-{round}"), format!("cmpl-{round}"));
        // It is gone.
        world.d.clear();
        world.pages.healthy(false);
        world.rank_until("gone", |rank| rank.state == RankState::Gone).await;
        assert_eq!(world.refused(world.p.prefill(&request, &[1])).await, "rank_not_ready", "round {round}");
        // It answers on HTTP; its side channel is not there yet.
        world.pages.restarted();
        world.pages.healthy(true);
        let waits = |rank: &sidecar::model::RankSnapshot| {
            rank.state == RankState::Handshaking && rank.reasons.iter().any(|reason| reason.contains("side channel"))
        };
        world.rank_until("handshaking", waits).await;
        assert_eq!(world.refused(world.p.prefill(&request, &[1])).await, "rank_not_ready", "round {round}");
        // It is there.
        world.d.push(FakeEngine::start(&*world.fabrics, &*world.net, &before, &at, 1).await);
        world.rank_until("ready", |rank| rank.state == RankState::Ready).await;
        let landed = world.land(&request, &[1]).await;
        assert_eq!(landed.receipt.engine_id, world.d[0].id, "round {round}");
        assert!(world.d[0].read(&*world.net, &landed.params, &request).await, "round {round}");
    }
    assert_eq!(world.count(|counters| &counters.engine_restarts), 5);
}

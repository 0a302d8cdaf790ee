//! The good path.

use std::time::Duration;

use kv::blocks::GroupedBlocks;
use kv::ids::{AttemptId, BlockId};
use nixl::faulty::ReadFault;
use sidecar::model::TransferPhase;
use vllm_wire::notif;

use crate::world::{BLOCK_BYTES, POOL, Setup, World};

async fn from_p_to_d(tp: u16) {
    let mut world = World::ready(Setup { tp, ..Setup::default() }).await;
    let landed = world.land("cmpl-1", &[5, 6, 7, 40, 2]).await;
    let receipt = &landed.receipt;
    assert_eq!((receipt.dp_rank.0, receipt.blocks), (8, 5));
    assert_eq!(receipt.bytes, 5 * BLOCK_BYTES * u64::from(tp));
    assert_eq!(receipt.engine_id, world.d[0].id);
    assert_eq!(receipt.source_engine_id, world.p.id);
    assert_eq!(receipt.collect_by, Duration::from_secs(10));
    assert!(receipt.source_lease_left > Duration::from_secs(20));
    assert!(receipt.stages.named().iter().take(5).all(|(_, time)| time.is_some()));
    let recorded: Vec<_> = world.receipts.given.lock().iter().map(|landed| landed.transfer.clone()).collect();
    assert_eq!(recorded, std::slice::from_ref(&landed.transfer), "on record before it was given");

    // What D is sent names the virtual engine, with lists as long as P's, and keeps every field that is not ours.
    assert_eq!(landed.params.remote_engine_id, receipt.virtual_engine_id);
    assert_eq!(landed.params.remote_request_id, receipt.request_id);
    assert_eq!(landed.params.remote_port, world.pod.side_channel_ports()[0]);
    assert_eq!(landed.params.remote_block_ids.groups()[0].len(), 5);
    assert_eq!(landed.params.remote_num_tokens, 5 * 32 - 5);
    assert_eq!(landed.params.extra["remote_prefill_cached_tokens"], 7);

    world.settle().await;
    assert_eq!(world.p.dones("cmpl-1"), vec![1; usize::from(tp)], "N: each worker of P is told once");
    assert_eq!(world.p.beats(), vec![1; usize::from(tp)], "the first heartbeat goes out at once");
    assert_eq!(world.shown(&landed).state, TransferPhase::Landed);
    assert_eq!(world.figures().await, (5, 0));

    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await, "the bytes are P's");
    world.d[0].notify(&*world.net, &landed.params, 0, notif::done(&receipt.request_id, 1)).await;
    world.settle().await;
    let after_one = if tp == 1 { TransferPhase::Done } else { TransferPhase::Landed };
    assert_eq!(world.shown(&landed).state, after_one, "every shard has to say so");
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;
    let shown = world.shown(&landed);
    assert_eq!(shown.state, TransferPhase::Done);
    assert_eq!(shown.collected_by.map(|rank| rank.0), Some(8));
    assert!(shown.stages.landed_idle.is_some() && shown.stages.collect.is_some());
    assert_eq!(world.figures().await, (0, 0));
    assert_eq!(world.count(|counters| &counters.late_collect), 0);
    assert_eq!(world.count(|counters| &counters.collected), 1);
    assert_eq!(world.ended(), [("landed", 1)].into());
}

#[tokio::test(start_paused = true)]
async fn a_prefill_lands_and_is_collected() {
    from_p_to_d(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_prefill_of_two_shards_lands_and_is_collected() {
    from_p_to_d(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_asked_once_by_many_at_the_same_time() {
    let world = World::ready(Setup::default()).await;
    let starts: Vec<_> =
        (0..8_u32).map(|n| world.start(world.p.prefill(&format!("cmpl-{n}"), &[n * 2, n * 2 + 1]))).collect();
    let transfers = starts.into_iter().map(|start| world.pod.transfer(start));
    for landed in futures_util::future::join_all(transfers).await {
        landed.unwrap();
    }
    assert_eq!(world.p.desk.asked.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(world.d[0].desk.asked.load(std::sync::atomic::Ordering::Relaxed), 1, "the engine too");
    assert_eq!(world.figures().await.0, 16);
}

#[tokio::test(start_paused = true)]
async fn the_same_attempt_is_the_same_transfer_and_another_is_a_conflict() {
    let mut world = World::ready(Setup::default()).await;
    let start = world.start(world.p.prefill("cmpl-1", &[1]));
    let (first, second) = tokio::join!(world.pod.transfer(start.clone()), world.pod.transfer(start.clone()));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.transfer, second.transfer);
    let later = world.pod.transfer(start.clone()).await.unwrap();
    assert_eq!(later.receipt, first.receipt);
    assert_eq!(world.pod.begin(start.clone()).await.unwrap(), first.transfer);
    let mut other = start;
    other.params = world.p.prefill("cmpl-2", &[2]);
    assert_eq!(world.pod.transfer(other).await.unwrap_err().code().as_str(), "attempt_conflict");
    world.settle().await;
    assert_eq!(world.p.dones("cmpl-1"), [1]);
    assert_eq!(world.receipts.given.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn begun_transfers_can_be_waited_for_and_listed() {
    let world = World::ready(Setup::default()).await;
    let transfer = world.pod.begin(world.start(world.p.prefill("cmpl-1", &[1, 2]))).await.unwrap();
    let shown = world.pod.wait(&transfer, Duration::from_secs(5)).await.unwrap();
    assert_eq!(shown.state, TransferPhase::Landed);
    assert_eq!(world.pod.landed(&transfer).unwrap().receipt.blocks, 2);
    world.settle().await;
    let mut start = world.start(world.p.prefill("cmpl-2", &[3]));
    start.attempt = AttemptId::new("second");
    let second = world.pod.begin(start).await.unwrap();
    let listed = world.pod.list(&sidecar::model::TransferFilter::default());
    assert_eq!(listed.iter().map(|shown| &shown.transfer).collect::<Vec<_>>(), [&second, &transfer]);
    let unknown = kv::ids::TransferId::new("8-nothing");
    assert!(world.pod.wait(&unknown, Duration::from_secs(1)).await.is_none());
    assert_eq!(world.pod.claim(&unknown).await.unwrap_err().code().as_str(), "not_found");
}

#[tokio::test(start_paused = true)]
async fn slots_are_zeroed_on_release_when_that_is_asked_for() {
    let world = World::ready(Setup { zero_on_release: true, ..Setup::default() }).await;
    let landed = world.land("cmpl-1", &[1, 2]).await;
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;
    assert_eq!(world.figures().await.0, 0);
    assert!(!world.d[0].read(&*world.net, &landed.params, "cmpl-1").await, "the bytes are gone");
    assert!([0, 1].iter().all(|block| world.d[0].bytes(*block).iter().all(|byte| *byte == 0)), "D reads zeros there");
}

#[tokio::test(start_paused = true)]
async fn what_landed_after_its_read_had_failed_is_zeroed_too_once_nothing_lands_any_more() {
    let world = World::ready(Setup { slots: 2, zero_on_release: true, ..Setup::default() }).await;
    world.plan.next_read(Some(ReadFault::FailThenLand(Duration::from_millis(400))));
    assert_eq!(world.refused(world.p.prefill("cmpl-late", &[0, 1])).await, "transfer_failed");
    // The only slots there are: given again when the agent is gone and they hold zeros, and not before.
    let landed = world.land("cmpl-2", &[10]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let slot = landed.params.remote_block_ids.groups()[0].ids()[0].0;
    let mut other = landed.params.clone();
    other.remote_block_ids = GroupedBlocks::new(vec![vec![BlockId(1 - slot)]]).unwrap();
    assert!(!world.d[0].read(&*world.net, &other, "cmpl-late").await);
    assert!(world.d[0].bytes(0).iter().all(|byte| *byte == 0), "the slot that nobody has now");
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-2").await);
}

#[tokio::test(start_paused = true)]
async fn a_prefill_is_moved_once_because_its_blocks_are_free_then() {
    let mut world = World::ready(Setup { dp: 2, ..Setup::default() }).await;
    let landed = world.land("cmpl-1", &[1]).await;
    let mut again = world.start(world.p.prefill("cmpl-1", &[1]));
    again.dp_rank = kv::ids::DpRank(9);
    let error = world.pod.transfer(again).await.unwrap_err();
    assert_eq!(error.code().as_str(), "attempt_conflict");
    assert!(error.to_string().contains(landed.transfer.as_str()), "{error}");
    world.settle().await;
    assert_eq!(world.p.dones("cmpl-1"), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_moved_prefill_stays_moved_while_its_lease_could_run_however_much_has_ended_since() {
    let mut world = World::ready(Setup::default()).await;
    let landed = world.land("cmpl-1", &[1]).await;
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;
    for number in 0..1030 {
        let mut nonsense = world.p.prefill(&format!("other-{number}"), &[2]);
        nonsense.remote_block_ids = GroupedBlocks::new(vec![vec![BlockId(POOL)]]).unwrap();
        assert_eq!(world.refused(nonsense).await, "params_invalid");
    }
    assert!(world.pod.get(&landed.transfer).is_none(), "its record is forgotten");
    assert_eq!(world.refused(world.p.prefill("cmpl-1", &[1])).await, "attempt_conflict");
    world.land("cmpl-2", &[1]).await;
    assert_eq!(world.p.dones("cmpl-1"), [1]);
    tokio::time::sleep(Duration::from_secs(31)).await;
    world.land("cmpl-1", &[1]).await;
}

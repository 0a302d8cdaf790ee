//! Invariants L, M and N when reads are slow, fail, or land after they have failed.

use std::time::Duration;

use nixl::faulty::{NotifyFault, ReadFault};
use sidecar::model::{Faults, Spoil, TransferPhase};

use crate::world::{SLOTS, Setup, World};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

async fn wait_for(what: &str, so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + secs(20);
    while !so() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn silent() -> Setup {
    Setup { faults: Faults { no_heartbeat: true, ..Faults::default() }, ..Setup::default() }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_ends_well_after_the_lease_gives_no_receipt() {
    let mut world = World::ready(silent()).await;
    world.plan.next_read(Some(ReadFault::Delay(secs(40))));
    let begun = tokio::time::Instant::now();
    assert_eq!(world.refused(world.p.prefill("cmpl-1", &[1, 2])).await, "lease_expired");
    assert_eq!(begun.elapsed().as_millis(), 28_500, "at once when it is over, a margin early");
    assert_eq!(world.figures().await, (2, 0), "M: hardware may still write");
    tokio::time::sleep(secs(12)).await;
    assert_eq!(world.figures().await, (0, 0), "it ended well, so its memory is quiet");
    assert!(world.receipts.given.lock().is_empty());
    assert_eq!(world.p.dones("cmpl-1"), [0]);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_the_lease_of_a_slow_read() {
    let mut world = World::ready(Setup { tp: 2, ..Setup::default() }).await;
    world.plan.next_read(Some(ReadFault::Delay(secs(40))));
    let landed = world.land("cmpl-1", &[1, 2]).await;
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await);
    let beats = world.p.beats();
    assert!(beats.iter().all(|beats| (8..=9).contains(beats)), "every sixth of the lease to each shard: {beats:?}");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_that_do_not_get_out_keep_nothing() {
    let world = World::ready(Setup::default()).await;
    world.plan.next_read(Some(ReadFault::Delay(secs(40))));
    world.plan.notifications(Some(NotifyFault::Refuse));
    assert_eq!(world.refused(world.p.prefill("cmpl-1", &[1])).await, "lease_expired");
}

#[tokio::test(start_paused = true)]
async fn a_held_pull_is_never_posted_once_its_lease_is_over() {
    let faults = Faults { no_heartbeat: true, hold_pull: Some(secs(35)), ..Faults::default() };
    let world = World::ready(Setup { faults, ..Setup::default() }).await;
    world.plan.reads(Some(ReadFault::FailEmpty));
    assert_eq!(world.refused(world.p.prefill("cmpl-1", &[1])).await, "lease_expired");
    tokio::time::sleep(secs(20)).await;
    assert_eq!(world.figures().await, (0, 0));
    assert_eq!(world.plan.injected(), 0, "no read was started");
}

#[tokio::test(start_paused = true)]
async fn a_lease_goes_on_while_its_transfer_waits_to_be_looked_at() {
    let world = World::ready(silent()).await;
    let mut transfer = std::pin::pin!(world.pod.transfer(world.start(world.p.prefill("cmpl-1", &[1]))));
    tokio::select! {
        biased;
        ended = &mut transfer => panic!("the rank has not run yet: {ended:?}"),
        () = std::future::ready(()) => {}
    }
    // The rank's task gets to run only now.
    tokio::time::advance(secs(29)).await;
    assert_eq!(transfer.await.unwrap_err().code().as_str(), "lease_expired");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_was_given_up_before_it_was_posted_says_nothing_about_its_peer() {
    let faults = Faults { hold_pull: Some(secs(5)), ..Faults::default() };
    let world = World::ready(Setup { faults, ..Setup::default() }).await;
    let start = world.start(world.p.prefill("cmpl-1", &[1]));
    assert!(tokio::time::timeout(secs(1), world.pod.transfer(start)).await.is_err());
    world.settle().await;
    world.land("cmpl-2", &[2]).await;
    let asked = world.p.desk.asked.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(asked, 1, "forgetting the peer would cut off the heartbeats of everyone else who reads from it");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_over_already_is_refused_at_once() {
    let world = World::ready(Setup::default()).await;
    let mut start = world.start(world.p.prefill("cmpl-1", &[1]));
    start.prefill_done_age = secs(29);
    let begun = tokio::time::Instant::now();
    assert_eq!(world.pod.transfer(start.clone()).await.unwrap_err().code().as_str(), "lease_expired");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // The same attempt with a longer lease is not the failed one.
    start.lease = Some(secs(60));
    world.pod.transfer(start).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failed_read_s_slots_are_not_reused_before_its_agent_is_gone() {
    let mut world = World::ready(Setup::default()).await;
    let kept = world.land("cmpl-0", &[0]).await;
    world.plan.next_read(Some(ReadFault::FailThenLand(secs(5))));
    assert_eq!(world.refused(world.p.prefill("cmpl-1", &[1])).await, "transfer_failed");
    assert_eq!(world.figures().await, (1, 1));
    let filling: Vec<u32> = (2..SLOTS).collect();
    let landed = world.land("cmpl-2", &filling).await;
    tokio::time::sleep(secs(10)).await;
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-2").await, "the late bytes fell elsewhere");
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;
    // A second failure is above the threshold: new agents, nothing quarantined, what had landed is untouched.
    world.plan.next_read(Some(ReadFault::FailThenLand(secs(5))));
    assert_eq!(world.refused(world.p.prefill("cmpl-3", &[3])).await, "transfer_failed");
    assert_eq!(world.figures().await, (1, 0));
    assert_eq!(world.count(|counters| &counters.recycled_agents), 1);
    assert!(world.d[0].read(&*world.net, &kept.params, "cmpl-0").await);
    let all_but_one: Vec<u32> = (1..SLOTS).collect();
    let landed = world.land("cmpl-4", &all_but_one).await;
    tokio::time::sleep(secs(10)).await;
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-4").await, "nothing lands after its agent is gone");
    assert_eq!(world.p.dones("cmpl-1"), [0], "N: failed attempts may be retried");
    assert_eq!(world.p.dones("cmpl-4"), [1]);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_slots_ends_a_small_quarantine() {
    let world = World::ready(Setup::default()).await;
    world.plan.next_read(Some(ReadFault::FailHalf));
    assert_eq!(world.refused(world.p.prefill("cmpl-1", &[1])).await, "transfer_failed");
    assert_eq!(world.figures().await, (0, 1));
    let all: Vec<u32> = (0..SLOTS).collect();
    let landed = world.land("cmpl-2", &all).await;
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-2").await);
    assert_eq!(world.figures().await, (SLOTS, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refused_shard_fails_the_transfer_and_the_others_end_first() {
    let mut world = World::ready(Setup { tp: 2, ..Setup::default() }).await;
    world.plan.next_read(Some(ReadFault::Delay(secs(5))));
    world.plan.next_read(Some(ReadFault::FailEmpty));
    assert_eq!(world.refused(world.p.prefill("cmpl-1", &[1])).await, "transfer_failed");
    assert_eq!(world.figures().await, (1, 0), "one shard's read still runs");
    tokio::time::sleep(secs(5)).await;
    assert_eq!(world.figures().await, (0, 1));
    assert_eq!(world.p.dones("cmpl-1"), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn the_first_of_four_shards_fails_at_once_and_the_slots_wait_half_a_second_for_the_others() {
    let half = Duration::from_millis(500);
    let mut world = World::ready(Setup { tp: 4, ..Setup::default() }).await;
    world.plan.next_read(Some(ReadFault::FailEmpty));
    for _ in 0..3 {
        world.plan.next_read(Some(ReadFault::Delay(half)));
    }
    let begun = tokio::time::Instant::now();
    assert_eq!(world.refused(world.p.prefill("cmpl-1", &[1])).await, "transfer_failed");
    assert!(begun.elapsed() < half, "the router hears of it at once");
    assert_eq!(world.figures().await, (1, 0), "the other shards' reads still run");
    tokio::time::sleep(half).await;
    assert_eq!(world.figures().await, (0, 1), "all have ended, the failed one's target may still be written");
    assert_eq!(world.p.dones("cmpl-1"), [0; 4], "N: a failed attempt may be retried");
    let landed = world.land("cmpl-1", &[1]).await;
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await);
    assert_eq!(world.p.dones("cmpl-1"), [1; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_cancels_and_the_slots_wait_for_the_read() {
    let mut world = World::ready(Setup::default()).await;
    world.plan.next_read(Some(ReadFault::Delay(secs(5))));
    let start = world.start(world.p.prefill("cmpl-1", &[1, 2, 3]));
    let left = tokio::time::timeout(secs(1), world.pod.transfer(start)).await;
    assert!(left.is_err());
    world.settle().await;
    let shown = world.pod.list(&sidecar::model::TransferFilter::default()).remove(0);
    assert_eq!(shown.state, TransferPhase::Quiescing);
    assert_eq!(shown.failure.unwrap().code.as_str(), "cancelled");
    assert_eq!(world.figures().await, (3, 0));
    tokio::time::sleep(secs(5)).await;
    assert_eq!(world.figures().await, (0, 0));
    assert_eq!(world.pod.get(&shown.transfer).unwrap().state, TransferPhase::Failed);
    assert_eq!(world.p.dones("cmpl-1"), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_transfer_ends_at_its_deadline_and_by_delete() {
    let world = World::ready(Setup::default()).await;
    world.plan.reads(Some(ReadFault::Delay(secs(10))));
    let mut start = world.start(world.p.prefill("cmpl-1", &[1]));
    start.deadline = tokio::time::Instant::now() + secs(3);
    assert_eq!(world.pod.transfer(start).await.unwrap_err().code().as_str(), "deadline");
    let transfer = world.pod.begin(world.start(world.p.prefill("cmpl-2", &[2]))).await.unwrap();
    world.settle().await;
    assert_eq!(world.pod.get(&transfer).unwrap().state, TransferPhase::InFlight);
    assert_eq!(world.pod.finish(&transfer).await.unwrap().state, TransferPhase::Quiescing);
    tokio::time::sleep(secs(10)).await;
    assert_eq!(world.pod.finish(&transfer).await.unwrap().state, TransferPhase::Failed);
    assert_eq!(world.ended(), [("deadline", 1), ("cancelled", 1)].into());
}

#[tokio::test(start_paused = true)]
async fn a_read_that_never_ends_costs_its_agent() {
    let world = World::ready(Setup::default()).await;
    world.plan.next_read(Some(ReadFault::Hang));
    let mut start = world.start(world.p.prefill("cmpl-1", &[1]));
    start.deadline = tokio::time::Instant::now() + secs(3);
    assert_eq!(world.pod.transfer(start).await.unwrap_err().code().as_str(), "deadline");
    assert_eq!(world.figures().await, (1, 0));
    tokio::time::sleep(secs(60)).await;
    let (used, quarantined) = world.figures().await;
    assert!(used == 0 && quarantined <= 1, "{used} used, {quarantined} in quarantine");
    world.land("cmpl-2", &(0..SLOTS).collect::<Vec<_>>()).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_notification_does_not_take_a_receipt_away() {
    let world = World::ready(silent()).await;
    world.plan.notifications(Some(NotifyFault::Refuse));
    let landed = world.land("cmpl-1", &[1]).await;
    // It is sent again for as long as P keeps the blocks.
    tokio::time::sleep(secs(30)).await;
    assert_eq!(world.shown(&landed).state, TransferPhase::Landed);
    assert_eq!(world.count(|counters| &counters.tells_failed), 1);
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await);
}

#[tokio::test(start_paused = true)]
async fn p_is_told_again_where_it_could_not_be_and_each_worker_once() {
    let mut world = World::ready(Setup { tp: 2, faults: silent().faults, ..Setup::default() }).await;
    // The first worker's word is refused, the second one's leaves; so is the next, and then it goes.
    for fault in [Some(NotifyFault::Refuse), None, Some(NotifyFault::Refuse)] {
        world.plan.next_notification(fault);
    }
    let landed = world.land("cmpl-1", &[1]).await;
    tokio::time::sleep(secs(1)).await;
    assert_eq!(world.plan.injected(), 2);
    let asked = world.p.desk.asked.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(asked, 6, "two shards, three times: the connection may be to blame, so it is made anew");
    assert_eq!(world.p.dones("cmpl-1"), [1, 1], "N");
    assert_eq!(world.count(|counters| &counters.told), 2);
    assert_eq!(world.count(|counters| &counters.tells_failed), 0);
    assert_eq!(world.shown(&landed).state, TransferPhase::Landed);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_does_not_get_out_while_staging_is_waited_for_goes_out_by_a_new_connection() {
    let world = World::ready(Setup { slots: 1, lease: secs(3), ..Setup::default() }).await;
    world.plan.next_read(Some(ReadFault::Delay(secs(2))));
    let first = world.pod.begin(world.start(world.p.prefill("cmpl-1", &[1]))).await.unwrap();
    world.settle().await;
    world.pod.finish(&first).await.unwrap();
    // The second one waits for two seconds; its first heartbeat is refused, the next is due half a second later.
    world.plan.next_notification(Some(NotifyFault::Refuse));
    let landed = world.land("cmpl-2", &[2]).await;
    assert_eq!(world.plan.injected(), 2);
    assert_eq!(world.p.desk.asked.load(std::sync::atomic::Ordering::Relaxed), 2, "P was asked anew");
    assert!(landed.receipt.source_lease_left > secs(1), "{:?}", landed.receipt.source_lease_left);
}

#[tokio::test]
async fn a_transfer_cancelled_while_its_receipt_is_put_on_record_has_no_receipt_and_the_record_says_so() {
    let mut world = World::ready(Setup::default()).await;
    let (go_on, hold) = std::sync::mpsc::channel();
    *world.receipts.hold.lock() = Some(hold);
    let transfer = world.pod.begin(world.start(world.p.prefill("cmpl-1", &[1]))).await.unwrap();
    wait_for("the record", || !world.receipts.given.lock().is_empty()).await;
    let shown = world.pod.finish(&transfer).await.unwrap();
    assert_eq!(shown.failure.unwrap().code.as_str(), "cancelled");
    go_on.send(()).unwrap();
    wait_for("its withdrawal", || !world.receipts.withdrawn.lock().is_empty()).await;
    assert_eq!(*world.receipts.withdrawn.lock(), std::slice::from_ref(&transfer));
    assert!(world.pod.landed(&transfer).is_none());
    assert_eq!(world.figures().await, (0, 0));
    assert_eq!(world.p.dones("cmpl-1"), [0], "N: another attempt may read the same blocks");
    let landed = world.land("cmpl-1", &[1]).await;
    assert_eq!(world.receipts.given.lock().len(), 2);
    assert_ne!(landed.transfer, transfer);
    assert_eq!(world.receipts.withdrawn.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn spoilt_staging_lands_and_differs() {
    for spoil in [Spoil::Flip, Spoil::Zero] {
        let faults = Faults { spoil: Some(spoil), ..Faults::default() };
        let world = World::ready(Setup { faults, ..Setup::default() }).await;
        let landed = world.land("cmpl-1", &[1, 2]).await;
        assert!(!world.d[0].read(&*world.net, &landed.params, "cmpl-1").await, "{spoil:?}");
    }
}

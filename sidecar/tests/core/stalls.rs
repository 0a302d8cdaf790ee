//! Pulls that stand still for longer than P's lease, or than their caller waits, in an arena that has room for one request.

use std::time::Duration;

use nixl::faulty::ReadFault;
use sidecar::model::{Faults, StartTransfer, TransferPhase};
use tokio::time::{Instant, sleep};

use crate::world::{Setup, World};

/// As many slots as one request needs.
const ROOM: u32 = 4;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_outlives_a_lease_of_a_second_gives_no_receipt_although_it_succeeds() {
    for tp in [1, 2] {
        let faults = Faults { no_heartbeat: true, ..Faults::default() };
        let mut world = World::ready(Setup { tp, lease: ms(1_000), faults, ..Setup::default() }).await;
        // With two shards the first one is in time.
        if tp == 2 {
            world.plan.next_read(None);
        }
        world.plan.next_read(Some(ReadFault::Delay(ms(2_000))));
        let begun = Instant::now();
        let start = world.start(world.p.prefill("cmpl-1", &[1, 2]));
        let p_uses_its_blocks_again = async {
            sleep(ms(1_000)).await;
            world.p.prefill("cmpl-of-another", &[1, 2]);
        };
        let refused = async {
            let error = world.pod.transfer(start).await.unwrap_err();
            (error.code().as_str(), begun.elapsed().as_millis())
        };
        let (refused, ()) = tokio::join!(refused, p_uses_its_blocks_again);
        assert_eq!(refused, ("lease_expired", 950), "at once when it is over, a margin early");
        assert_eq!(world.figures().await, (2, 0), "M: the bytes are still on their way");
        sleep(ms(2_000)).await;
        assert_eq!(world.figures().await, (0, 0), "they came, so the memory is quiet");
        assert!(world.receipts.given.lock().is_empty());
        assert_eq!(world.p.dones("cmpl-1"), vec![0; usize::from(tp)]);
        world.land("cmpl-2", &[3]).await;
    }
}

/// How a caller ends a pull that is under way.
#[derive(Clone, Copy, Debug)]
enum Ends {
    Delete,
    Leaving,
    Deadline,
}

/// Ends a pull a second after its begin; its read is still on its way then.
async fn give_up(world: &World, mut start: StartTransfer, how: Ends) {
    match how {
        Ends::Delete => {
            let transfer = world.pod.begin(start).await.unwrap();
            sleep(ms(1_000)).await;
            assert_eq!(world.pod.finish(&transfer).await.unwrap().state, TransferPhase::Quiescing);
        }
        Ends::Leaving => {
            let left = tokio::time::timeout(ms(1_000), world.pod.transfer(start)).await;
            assert!(left.is_err(), "{left:?}");
        }
        Ends::Deadline => {
            start.deadline = Instant::now() + ms(1_000);
            assert_eq!(world.pod.transfer(start).await.unwrap_err().code().as_str(), "deadline");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn slots_of_a_pull_that_was_given_up_go_on_when_its_read_has_ended_and_at_once_then() {
    for how in [Ends::Delete, Ends::Leaving, Ends::Deadline] {
        let mut world = World::ready(Setup { slots: ROOM, ..Setup::default() }).await;
        world.plan.next_read(Some(ReadFault::Delay(ms(2_500))));
        let begun = Instant::now();
        give_up(&world, world.start(world.p.prefill("cmpl-1", &[0, 1, 2, 3])), how).await;
        let landed = world.land("cmpl-2", &[10, 11, 12, 13]).await;
        assert_eq!(begun.elapsed().as_millis(), 2_500, "{how:?}: not before the read has ended, and at once then");
        assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-2").await, "{how:?}");
        assert_eq!(world.p.dones("cmpl-1"), [0], "{how:?}");
        assert_eq!(world.figures().await, (ROOM, 0), "{how:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_land_400_ms_after_their_read_has_failed_are_never_seen_by_the_slots_next_owner() {
    let world = World::ready(Setup { slots: ROOM, ..Setup::default() }).await;
    world.plan.next_read(Some(ReadFault::FailThenLand(ms(400))));
    assert_eq!(world.refused(world.p.prefill("cmpl-poison", &[0, 1, 2, 3])).await, "transfer_failed");
    let landed = world.land("cmpl-2", &[10, 11, 12, 13]).await;
    assert_eq!(world.count(|counters| &counters.recycled_agents), 1, "only the end of the agent is a proof");
    sleep(ms(1_000)).await;
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-2").await);
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;

    // Where the agent cannot be destroyed, there is no proof, and no next owner.
    world.plan.stuck(true);
    world.plan.next_read(Some(ReadFault::FailThenLand(ms(400))));
    assert_eq!(world.refused(world.p.prefill("cmpl-poison-2", &[0, 1, 2, 3])).await, "transfer_failed");
    assert_eq!(world.figures().await, (0, ROOM));
    let error = world.pod.transfer(world.start(world.p.prefill("cmpl-3", &[20]))).await.unwrap_err();
    assert_eq!(error.code().as_str(), "rank_not_ready", "and the router goes elsewhere");
    assert!(error.to_string().contains("all of its staging is in quarantine"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_beside_its_failed_attempt_shares_nothing_with_it() {
    let mut world = World::ready(Setup { slots: 2 * ROOM, ..Setup::default() }).await;
    let params = world.p.prefill("cmpl-1", &[0, 1, 2, 3]);
    world.plan.next_read(Some(ReadFault::Delay(ms(5_000))));
    give_up(&world, world.start(params.clone()), Ends::Deadline).await;
    let landed = world.pod.transfer(world.start(params)).await.unwrap();
    assert_eq!(world.figures().await, (2 * ROOM, 0), "each has its own slots");
    sleep(ms(5_000)).await;
    assert_eq!(world.figures().await, (ROOM, 0));
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await);
    assert_eq!(world.p.dones("cmpl-1"), [1], "N: told when the retry had landed, and not by the failed attempt");
    assert_eq!(world.receipts.given.lock().len(), 1);
}

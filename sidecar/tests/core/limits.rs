//! More at a time than an agent takes, and agents that cannot be destroyed.

use std::sync::Arc;
use std::time::Duration;

use kv::readiness::RankState;
use nixl::faulty::ReadFault;
use side_channel::Zmq;
use sidecar::fabrics::NixlFabrics;
use sidecar::model::ShutDown;

use crate::world::{POOL, SLOTS, Setup, World};

/// More than an agent's own queue takes.
const MANY: u32 = 1_800;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// That many transfers of one block, all under way at a time; in two halves, as a rank's task is given at most 1024 commands at once.
async fn many_at_once(world: &World) {
    let half = async |half: u32| {
        let numbers = (0..MANY / 2).map(|number| half * MANY / 2 + number);
        let prefills = numbers.map(|number| world.p.prefill(&format!("cmpl-{number}"), &[number % POOL]));
        let starts: Vec<_> = prefills.map(|params| world.start(params)).collect();
        for ended in futures_util::future::join_all(starts.into_iter().map(|start| world.pod.transfer(start))).await {
            assert!(ended.is_ok(), "{:?}: {:?}", ended.unwrap_err(), world.ended());
        }
    };
    let later = async {
        while world.count(|counters| &counters.started) < u64::from(MANY / 2) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        half(1).await;
    };
    tokio::join!(half(0), later);
    assert_eq!(world.ended(), [("landed", u64::from(MANY))].into());
}

#[tokio::test(start_paused = true)]
async fn more_reads_than_an_agent_takes_at_a_time_wait_for_their_turn() {
    let world = World::ready(Setup { slots: MANY, ..Setup::default() }).await;
    world.plan.room(Some(1_024));
    world.plan.reads(Some(ReadFault::Delay(secs(1))));
    many_at_once(&world).await;
    assert_eq!(world.plan.injected(), u64::from(MANY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_reads_than_an_agent_takes_at_a_time_all_land_over_nixl() {
    let Some(api) = nixl_sys::testing::require_nixl() else { return };
    let (fabrics, net) = (Arc::new(NixlFabrics::new(api)), Arc::new(Zmq::new()));
    let world = World::with(Setup { slots: MANY, ..Setup::default() }, fabrics, net, "127.0.0.1").await;
    world.rank_until("ready", |rank| rank.state == RankState::Ready).await;
    many_at_once(&world).await;
    world.pod.shut_down(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_read_that_waits_for_its_turn_is_given_up_without_having_been_posted() {
    let world = World::ready(Setup { slots: MANY, ..Setup::default() }).await;
    world.plan.reads(Some(ReadFault::Delay(secs(20))));
    let starts: Vec<_> = (0..1_000).map(|n| world.start(world.p.prefill(&format!("cmpl-{n}"), &[n % POOL]))).collect();
    let running = futures_util::future::join_all(starts.into_iter().map(|start| world.pod.begin(start))).await;
    assert!(running.iter().all(Result::is_ok));
    world.settle().await;
    let mut start = world.start(world.p.prefill("cmpl-late", &[1]));
    start.deadline = tokio::time::Instant::now() + secs(3);
    assert_eq!(world.pod.transfer(start).await.unwrap_err().code().as_str(), "deadline");
    assert_eq!(world.figures().await, (1_000, 0), "its slot is free: no hardware has seen it");
    assert_eq!(world.plan.injected(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_has_no_place_is_no_failed_read() {
    let world = World::ready(Setup::default()).await;
    world.land("cmpl-0", &[0]).await;
    world.plan.room(Some(0));
    let error = world.pod.transfer(world.start(world.p.prefill("cmpl-1", &[1]))).await.unwrap_err();
    assert_eq!((error.code().as_str(), error.code().retry().as_str()), ("staging_full", "other_target"));
    assert_eq!(world.figures().await, (1, 0), "nothing was posted");
    world.plan.room(None);
    world.land("cmpl-1", &[1]).await;
}

#[tokio::test(start_paused = true)]
async fn agents_that_cannot_be_destroyed_keep_their_slots_and_stand_in_nobody_s_way() {
    const STUCK: u32 = 6;
    let world = World::ready(Setup::default()).await;
    world.plan.stuck(true);
    for round in 0..STUCK {
        // Two slots are above the threshold: new agents are made, and the old ones closed, at once.
        world.plan.next_read(Some(ReadFault::FailThenLand(secs(5))));
        let code = world.refused(world.p.prefill(&format!("cmpl-{round}"), &[2 * round, 2 * round + 1])).await;
        assert_eq!(code, "transfer_failed");
        assert_eq!(world.figures().await, (0, 2 * (round + 1)), "round {round}");
        assert_eq!(world.count(|counters| &counters.recycled_agents), u64::from(round) + 1);
    }
    // What is late falls into slots that nobody has.
    let left: Vec<u32> = (0..SLOTS - 2 * STUCK).collect();
    let landed = world.land("cmpl-left", &left).await;
    tokio::time::sleep(secs(10)).await;
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-left").await);
    assert_eq!(
        world.refused(world.p.prefill("cmpl-more", &(0..=SLOTS - 2 * STUCK).collect::<Vec<_>>())).await,
        "request_exceeds_staging"
    );
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;
    // A quarantine of agents that can be destroyed still ends.
    world.plan.stuck(false);
    world.plan.next_read(Some(ReadFault::FailThenLand(secs(5))));
    assert_eq!(world.refused(world.p.prefill("cmpl-last", &left)).await, "transfer_failed");
    assert_eq!(world.figures().await, (0, 2 * STUCK));
    world.land("cmpl-again", &left).await;
    assert_eq!(
        world.pod.shut_down(Duration::ZERO).await,
        ShutDown::Stuck,
        "memory stays pinned until the process ends"
    );
}

#[tokio::test(start_paused = true)]
async fn a_read_that_hangs_in_an_agent_that_cannot_be_destroyed_keeps_its_slots_and_ends_all_the_same() {
    let world = World::ready(Setup::default()).await;
    world.plan.stuck(true);
    world.plan.next_read(Some(ReadFault::Hang));
    let mut start = world.start(world.p.prefill("cmpl-1", &[1, 2]));
    start.deadline = tokio::time::Instant::now() + secs(3);
    assert_eq!(world.pod.transfer(start).await.unwrap_err().code().as_str(), "deadline");
    tokio::time::sleep(secs(60)).await;
    assert_eq!(world.figures().await, (0, 2));
    assert_eq!(world.pod.ranks().borrow()[0].in_flight, 0);
    world.land("cmpl-2", &(2..SLOTS).collect::<Vec<_>>()).await;
}

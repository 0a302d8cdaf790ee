//! Timelines, percentiles and reasons, on paused time: every figure is exact.

use std::time::Duration;

use kv::ids::EngineId;
use nixl::faulty::ReadFault;
use sidecar::latency::causes::Subject;
use sidecar::latency::{By, Query, Why, why};
use sidecar::model::{Contact, Faults, SlowWire, TransferPhase, TransferSnapshot};
use tokio::time::Instant;

use crate::world::{FakeEngine, SLOTS, Setup, World};

const WIRE: Duration = Duration::from_millis(41);

fn said(world: &World, transfer: &TransferSnapshot) -> Why {
    why(transfer, &world.pod.latency().usual(), None, Instant::now()).unwrap()
}

/// The stages follow one another without a gap, whatever the machine did in between.
fn in_order(transfer: &TransferSnapshot) {
    let spans = transfer.timeline(Instant::now());
    for pair in spans.windows(2) {
        assert_eq!(pair[0].start + pair[0].duration, pair[1].start, "{spans:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeline_has_every_stage_one_after_the_other_and_the_read_in_numbers() {
    let world = World::ready(Setup { tp: 2, ..Setup::default() }).await;
    world.plan.reads(Some(ReadFault::Delay(WIRE)));
    let landed = world.land("cmpl-1", &[5, 6, 7, 40]).await;
    tokio::time::sleep(Duration::from_millis(9)).await;
    world.d[0].done(&*world.net, &landed.params).await;
    world.settle().await;
    let shown = world.shown(&landed);
    assert_eq!(shown.state, TransferPhase::Done);
    let spans = shown.timeline(Instant::now());
    let names: Vec<_> = spans.iter().map(|span| span.stage).collect();
    assert_eq!(names, ["queued", "handshake", "post", "wire", "verify", "landed_idle", "collect"]);
    assert_eq!((spans[3].duration, spans[5].duration), (WIRE, Duration::from_millis(9)));
    in_order(&shown);
    let read = &shown.read;
    assert_eq!((read.contact, read.address.as_ref()), (Contact::Asked, Some(&world.p.endpoint)));
    // Three regions, two kernel blocks each: blocks 5, 6, 7 become one run, 40 another.
    assert_eq!((read.descriptors(), read.pieces(), read.bytes()), (2 * 3 * 2, 2 * 3 * 2 * 4, shown.bytes));
    assert_eq!(read.shards.len(), 2);
    assert!(read.shards.iter().all(|shard| shard.wire == WIRE && shard.agent.as_str().starts_with("engine-p-")));

    let peers = world.pod.peers();
    assert_eq!(peers.len(), 1);
    assert_eq!((peers[0].handshakes, peers[0].transfers, peers[0].bytes), (1, 1, shown.bytes));
    assert_eq!((peers[0].agents.len(), &peers[0].engine), (2, &world.p.id));
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_and_what_failed_show_how_far_they_got() {
    let world = World::ready(Setup::default()).await;
    world.plan.next_read(Some(ReadFault::Hang));
    let mut start = world.start(world.p.prefill("cmpl-1", &[1]));
    start.deadline = Instant::now() + Duration::from_secs(10);
    let transfer = world.pod.begin(start).await.unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    let hangs = world.pod.get(&transfer).unwrap();
    let last = *hangs.timeline(Instant::now()).last().unwrap();
    assert_eq!((last.stage, last.duration, last.running), ("wire", Duration::from_secs(7), true));
    assert!(said(&world, &hangs).text.contains("still going on"), "{}", said(&world, &hangs).text);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let failed = world.pod.get(&transfer).unwrap();
    assert_eq!(failed.stages.wire, Some(Duration::from_secs(10)), "up to its failure");
    assert!(said(&world, &failed).text.contains("it failed then (deadline)"));
    let peer = &world.pod.peers()[0];
    assert_eq!((peer.transfers_failed, peer.last_error.as_ref().unwrap().code.as_str()), (1, "deadline"));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_is_on_the_list_with_its_error() {
    let world = World::ready(Setup::default()).await;
    let mut params = world.p.prefill("cmpl-1", &[1]);
    params.remote_port = 1;
    assert_eq!(world.refused(params).await, "peer_unreachable");
    let peer = &world.pod.peers()[0];
    assert_eq!((peer.handshakes, peer.handshakes_failed, peer.shaken), (0, 1, None));
    assert_eq!(peer.last_error.as_ref().unwrap().code.as_str(), "peer_unreachable");
}

#[tokio::test(start_paused = true)]
async fn a_slow_wire_is_told_against_the_usual_one() {
    let world = World::ready(Setup::default()).await;
    world.plan.reads(Some(ReadFault::Delay(Duration::from_millis(6))));
    for number in 0..5_u32 {
        world.land(&format!("cmpl-{number}"), &[number]).await;
    }
    world.plan.next_read(Some(ReadFault::Delay(WIRE)));
    let slow = world.land("slow", &[8, 9]).await;
    let why = said(&world, &world.shown(&slow));
    assert_eq!((why.stage, why.took), ("wire", WIRE));
    let text = "wire: 41 ms against 6.0 ms; 3 descriptors, merged from 12 of 64 B";
    assert_eq!(why.text, text);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_staging_is_told_with_what_was_in_the_way() {
    let world = World::ready(Setup::default()).await;
    let all: Vec<u32> = (0..SLOTS).collect();
    let first = world.land("first", &all).await;
    let waits = world.pod.begin(world.start(world.p.prefill("second", &[1, 2, 3]))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    world.d[0].done(&*world.net, &first.params).await;
    let waited = world.pod.wait(&waits, Duration::from_secs(5)).await.unwrap();
    in_order(&waited);
    let why = said(&world, &waited);
    assert_eq!(why.stage, "queued");
    assert!(why.text.contains("staging was full (3 slots wanted, 0 of 16 free, 0 transfers ahead)"), "{}", why.text);
}

#[tokio::test(start_paused = true)]
async fn a_peer_with_a_slow_wire_is_named_among_others() {
    // Only the second engine's port is slow, so only its reads are.
    let world = World::new(Setup::default()).await;
    let other = FakeEngine::start(&*world.fabrics, &*world.net, "engine-slow", &world.p.endpoint.with_port(0), 1).await;
    let slow_wire = Some(SlowWire { port: other.endpoint.port, delay: Duration::from_millis(80) });
    let world = world.again(Faults { slow_wire, ..Faults::default() }).await;
    world.all_ready().await;
    let mut last = None;
    for number in 0..4_u32 {
        for engine in [&world.p, &other] {
            let start = world.start(engine.prefill(&format!("cmpl-{number}"), &[number]));
            last = Some(world.pod.transfer(start).await.unwrap());
        }
    }
    let by = By { rank: false, peer: true, stage: true };
    let report = world.pod.latency().report(&Query { window: Duration::from_secs(60), by });
    assert_eq!(report.causes.len(), 1, "{:#?}", report.causes);
    let cause = &report.causes[0];
    assert_eq!((&cause.subject, cause.stage), (&Subject::Peer(EngineId::new("engine-slow")), "wire"));
    let wire = |group: &&sidecar::latency::Group| group.stage == Some("wire");
    let figures: Vec<_> = report.groups.iter().filter(wire).map(|group| group.figures.max).collect();
    assert_eq!(figures, [0, 80_000]);
    let why = said(&world, &world.shown(&last.unwrap()));
    assert!(
        why.text.starts_with("wire: 80 ms against 0 µs with other peers (this peer's median is 80 ms"),
        "{}",
        why.text
    );
}

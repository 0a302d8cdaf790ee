//! A fabric over two agents: when the second one comes, what it is given, and what becomes of a read when a piece of it goes wrong.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking and waits for a thread")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use nixl::{
    AgentName, Closed, Cores, Fabric, FabricError, HugePages, Lanes, LocalDescs, MemKind, Memory, PeerMemory, Read,
    ReadDone, Region, RemoteDescs,
    faulty::{FaultPlan, Faulty, ReadFault},
    lanes::LARGE,
    loopback::{LoopbackFabric, LoopbackNet},
};

const DEADLINE: Duration = Duration::from_secs(30);

struct World {
    source: Arc<LoopbackFabric>,
    there: Region,
    lanes: Arc<Lanes>,
    here: Region,
    /// Faults of the first and of the second agent.
    plans: [FaultPlan; 2],
    starts: Arc<AtomicUsize>,
}

fn name(name: &str) -> AgentName {
    AgentName::new(name).unwrap()
}

/// Pieces of a large read.
const PIECE: u64 = 1 << 20;

/// A source that has been loaded, and lanes that have not read yet. What a loopback reads, the posting thread copies.
async fn world(cores: usize) -> World {
    of_size(cores, 2 * LARGE).await
}

async fn of_size(cores: usize, bytes: u64) -> World {
    let net = LoopbackNet::new();
    let source = net.agent(name("p"));
    let there = source.register(Memory::host(bytes, HugePages::Off).unwrap()).await.unwrap();
    let plans = [FaultPlan::new(), FaultPlan::new()];
    let starts = Arc::new(AtomicUsize::new(0));
    let main = Faulty::wrap(net.agent(name("d")), plans[0].clone());
    let (plan, count) = (plans[1].clone(), Arc::clone(&starts));
    let second = move || {
        count.fetch_add(1, Ordering::Relaxed);
        Some(Faulty::wrap(net.agent(name("d-2")), plan.clone()) as Arc<dyn Fabric>)
    };
    let lanes = Lanes::new(main, Box::new(second), Cores::new(cores));
    assert_eq!(lanes.load_peer(source.local_metadata().await.unwrap()).await, Ok(name("p")));
    let here = lanes.register(Memory::host(bytes, HugePages::Off).unwrap()).await.unwrap();
    World { source, there, lanes, here, plans, starts }
}

impl World {
    /// Reads the first half of the source into the second half of our memory, in three entries.
    fn read(&self) -> Read {
        self.parts(&[(0, LARGE / 4), (LARGE / 4, LARGE / 8), (3 * LARGE / 8, 5 * LARGE / 8)])
    }

    fn parts(&self, entries: &[(u64, u64)]) -> Read {
        let base = self.there.base();
        let ranges = std::iter::once(base..base + self.there.len()).collect();
        let memory = PeerMemory { kind: MemKind::Dram, device: 0, ranges };
        Read {
            peer: name("p"),
            local: LocalDescs::new(&self.here, entries.iter().map(|(at, len)| (LARGE + at, *len))).unwrap(),
            remote: RemoteDescs::new(&memory, entries.iter().map(|(at, len)| (base + at, *len))).unwrap(),
            notify: None,
        }
    }

    async fn reads(&self) -> Result<ReadDone, FabricError> {
        self.lanes.read(self.read()).done.await
    }

    /// The second agent is there and has the memory: a read is cut.
    async fn is_cut(&self) {
        let start = Instant::now();
        while self.reads().await.unwrap().descs == 3 {
            assert!(start.elapsed() < DEADLINE, "no read is cut");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Whether exactly these pieces of the second half here are what the source holds.
    fn landed(&self, pieces: &[u64]) -> bool {
        let mut whole = vec![0; usize::try_from(2 * LARGE).unwrap()];
        self.here.read_at(0, &mut whole).unwrap();
        let source = |at: u64| at.checked_sub(LARGE).filter(|at| pieces.contains(&(at / PIECE)));
        let expected: Vec<u8> = (0..2 * LARGE).map(|at| source(at).map_or(0xee, pattern)).collect();
        whole == expected
    }

    fn prepare(&self) {
        let bytes: Vec<u8> = (0..self.there.len()).map(pattern).collect();
        self.there.write_at(0, &bytes).unwrap();
        self.here.fill(0..self.here.len(), 0xee).unwrap();
    }
}

fn pattern(at: u64) -> u8 {
    u8::try_from(at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).unwrap() & 0x7f
}

#[tokio::test]
async fn a_large_read_that_a_thread_copied_brings_a_second_agent_and_later_ones_are_cut() {
    let world = world(2).await;
    assert_eq!((world.lanes.agents(), world.starts.load(Ordering::Relaxed)), (1, 0));
    world.is_cut().await;
    assert_eq!((world.lanes.agents(), world.starts.load(Ordering::Relaxed)), (2, 1));
    world.prepare();
    let done = world.reads().await.unwrap();
    assert_eq!((done.bytes, done.descs), (LARGE, 5), "an entry that a cut goes through has a part in each piece");
    assert!(world.landed(&[0, 1, 2, 3]), "every byte in its place, and nothing else");
    // What is registered and loaded from now on, both know too.
    world.lanes.forget_peer(name("p")).await.unwrap();
    assert_eq!(world.reads().await, Err(FabricError::UnknownPeer(name("p"))));
    world.lanes.load_peer(world.source.local_metadata().await.unwrap()).await.unwrap();
    let world = World { here: world.lanes.register(world.here.memory().clone()).await.unwrap(), ..world };
    world.is_cut().await;
    assert_eq!(world.lanes.close(DEADLINE).await, Ok(Closed::Quiet));
    assert_eq!(world.reads().await, Err(FabricError::Closed));
    assert_eq!(world.starts.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn reads_that_a_transport_moves_small_ones_and_those_with_a_notification_stay_whole() {
    let world = world(2).await;
    // Not the post took the time, but what came after it: three times in a row, and nobody looks any more until the peer is loaded anew.
    world.plans[0].reads(Some(ReadFault::Delay(Duration::from_millis(1))));
    for _ in 0..3 {
        world.reads().await.unwrap();
    }
    world.plans[0].reads(None);
    world.reads().await.unwrap();
    assert_eq!(world.starts.load(Ordering::Relaxed), 0);
    world.lanes.load_peer(world.source.local_metadata().await.unwrap()).await.unwrap();
    // Once is no proof: it may have waited for its connection.
    world.plans[0].next_read(Some(ReadFault::Delay(Duration::from_millis(1))));
    world.reads().await.unwrap();
    world.is_cut().await;
    let mut read = world.read();
    read.notify = Some(Bytes::from_static(b"read"));
    assert_eq!(world.lanes.read(read).done.await.unwrap().descs, 3);
    let small = world.parts(&[(0, LARGE - 1)]);
    assert_eq!(world.lanes.read(small).done.await.unwrap().descs, 1);
}

#[tokio::test]
async fn a_read_is_cut_only_while_a_core_is_free() {
    let world = world(2).await;
    world.is_cut().await;
    world.plans[0].next_read(Some(ReadFault::Hang));
    let hung = world.lanes.read(world.read());
    assert_eq!(world.reads().await.unwrap().descs, 3, "both cores are in use");
    assert_eq!(world.lanes.close(Duration::ZERO).await, Ok(Closed::Destroyed));
    assert_eq!(hung.done.await, Err(FabricError::Abandoned));
    let alone = self::world(1).await;
    for _ in 0..3 {
        alone.reads().await.unwrap();
    }
    assert_eq!(alone.starts.load(Ordering::Relaxed), 0, "one core gains nothing");
}

#[tokio::test]
async fn a_read_has_ended_when_its_pieces_have_and_is_quiet_when_all_are() {
    let world = world(2).await;
    world.is_cut().await;
    for failing in [0, 1] {
        world.plans[failing].next_read(Some(ReadFault::FailEmpty));
        world.plans[1 - failing].next_read(Some(ReadFault::Delay(Duration::from_millis(300))));
        let begun = Instant::now();
        let error = world.reads().await.unwrap_err();
        assert!(begun.elapsed() >= Duration::from_millis(300), "another piece was still under way");
        assert!(!error.memory_is_quiet());
    }
    assert_eq!(world.lanes.stats().buried, 2);
    // One piece is refused, another one fails: what may still be written decides.
    world.plans[0].room(Some(0));
    world.plans[1].next_read(Some(ReadFault::FailEmpty));
    assert!(!world.reads().await.unwrap_err().memory_is_quiet());
    assert_eq!(world.reads().await, Err(FabricError::Busy));
    world.plans[0].room(None);
    assert!(world.reads().await.is_ok(), "others go on");
    assert_eq!(world.lanes.close(DEADLINE).await, Ok(Closed::Destroyed));
}

#[tokio::test]
async fn what_the_second_agent_refuses_the_first_one_reads() {
    let world = world(2).await;
    world.is_cut().await;
    world.prepare();
    world.plans[1].room(Some(0));
    let done = world.reads().await.unwrap();
    assert_eq!((done.bytes, done.descs), (LARGE, 5));
    assert!(world.landed(&[0, 1, 2, 3]));
    assert_eq!(world.lanes.stats().buried, 0);
    assert_eq!(world.lanes.close(DEADLINE).await, Ok(Closed::Quiet));
}

#[tokio::test]
async fn the_faster_agent_takes_more() {
    let world = of_size(2, 8 * LARGE).await;
    world.is_cut().await;
    world.plans[0].reads(Some(ReadFault::Delay(Duration::from_millis(200))));
    let before = world.plans[0].injected();
    let done = world.lanes.read(world.parts(&[(0, 4 * LARGE)])).done.await.unwrap();
    assert_eq!((done.bytes, done.descs), (4 * LARGE, 16));
    assert_eq!(world.plans[0].injected() - before, 2, "as many as an agent is given ahead");
}

#[tokio::test]
async fn nothing_lands_after_the_close_by_either_agent() {
    let world = world(2).await;
    world.is_cut().await;
    world.prepare();
    world.plans[1].reads(Some(ReadFault::FailThenLand(Duration::from_millis(200))));
    assert!(!world.reads().await.unwrap_err().memory_is_quiet());
    assert!(world.landed(&[0, 2]), "what the first agent was given");
    assert_eq!(world.lanes.close(DEADLINE).await, Ok(Closed::Destroyed));
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(world.landed(&[0, 2]), "and what the second one was given never");
}

#[tokio::test]
async fn a_second_agent_that_cannot_be_destroyed_is_said_to_be_so() {
    let world = world(2).await;
    world.is_cut().await;
    world.plans[1].stuck(true);
    assert_eq!(world.lanes.close(DEADLINE).await, Ok(Closed::Stuck));
    assert_eq!(world.lanes.close(DEADLINE).await, Ok(Closed::Stuck), "asked again");
}

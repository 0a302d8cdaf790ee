//! Many transfers at once, with reads that are late, fail, hang or land after failing, callers that leave, and a D that is slow or never comes.
//!
//! Whatever happens: a decode that reads within its claim gets its own bytes, P is told exactly when there is a receipt, and no slot is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv::ids::DpRank;
use nixl::faulty::{NotifyFault, ReadFault};
use tokio_util::sync::CancellationToken;

use crate::world::{OFFSET, SLOTS, Setup, World};

const WORKERS: u32 = 8;
const ROUNDS: u32 = 40;
const BLOCKS: u32 = 4;

/// xorshift: the tests' own source of numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn ms(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.roll(most))
    }
}

fn fault(dice: &mut Dice) -> Option<ReadFault> {
    let delay = dice.ms(8_000);
    match dice.roll(40) {
        0 => Some(ReadFault::FailEmpty),
        1 => Some(ReadFault::FailHalf),
        2 => Some(ReadFault::FailThenLand(delay)),
        3 => Some(ReadFault::RefusePost),
        4 => Some(ReadFault::Hang),
        5..12 => Some(ReadFault::Delay(delay)),
        _ => None,
    }
}

async fn work(world: Arc<World>, worker: u32, seed: u64) -> BTreeMap<String, bool> {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (u64::from(worker) + 1));
    let mut landed_or_not = BTreeMap::new();
    for round in 0..ROUNDS {
        let request = format!("cmpl-{worker}-{round}");
        let count = u32::try_from(dice.roll(u64::from(BLOCKS))).unwrap() + 1;
        let blocks: Vec<u32> = (0..count).map(|block| worker * BLOCKS + block).collect();
        let mut start = world.start(world.p.prefill(&request, &blocks));
        let rank = usize::try_from(dice.roll(2)).unwrap();
        start.dp_rank = DpRank(OFFSET + u16::try_from(rank).unwrap());
        start.deadline = tokio::time::Instant::now() + Duration::from_secs(6);
        if let Some(fault) = fault(&mut dice) {
            world.plan.next_read(Some(fault));
        }
        if dice.roll(20) == 0 {
            world.plan.next_notification(Some(NotifyFault::Double));
        }
        let patience = if dice.roll(8) == 0 { dice.ms(3_000) } else { Duration::from_secs(600) };
        let outcome = tokio::time::timeout(patience, world.pod.transfer(start)).await;
        let landed = match outcome {
            Ok(Ok(landed)) => landed,
            // It may have landed in the moment in which the caller left.
            Err(_left) => continue,
            Ok(Err(_failed)) => {
                landed_or_not.insert(request, false);
                continue;
            }
        };
        landed_or_not.insert(request.clone(), true);
        let most = if dice.roll(10) == 0 { 9_000 } else { 500 };
        tokio::time::sleep(dice.ms(most)).await;
        let came = dice.roll(6) != 0;
        if came {
            let equal = world.d[rank].read_into(&*world.net, &landed.params, &request, worker * BLOCKS).await;
            assert!(equal, "seed {seed}: {request} read other bytes than its own");
            world.d[rank].done(&*world.net, &landed.params).await;
        }
        if dice.roll(10) != 0 {
            world.pod.finish(&landed.transfer).await.unwrap();
        }
    }
    landed_or_not
}

/// At every moment, the handles add up to what the allocator says; returns how many were seen.
async fn watch(world: Arc<World>, seed: u64, stop: CancellationToken) -> usize {
    let mut seen = 0;
    while !stop.is_cancelled() {
        for rank in world.pod.handles().await {
            let blocks: u32 = rank.handles.iter().map(|handle| handle.blocks).sum();
            let ids = rank.handles.iter().filter_map(|handle| handle.block_ids.as_deref()).flatten().flatten();
            let mut ids: Vec<u32> = ids.copied().collect();
            assert_eq!(ids.len(), usize::try_from(blocks).unwrap(), "seed {seed}: every block has its id");
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), usize::try_from(blocks).unwrap(), "seed {seed}: no block has two handles");
            let staging = &rank.staging;
            assert_eq!(blocks + staging.zeroing_blocks, staging.used_blocks, "seed {seed}: {:#?}", rank.handles);
            seen += rank.handles.len();
        }
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    seen
}

async fn storm(seed: u64) {
    let zero_on_release = seed.is_multiple_of(2);
    let world = Arc::new(World::ready(Setup { dp: 2, tp: 2, zero_on_release, ..Setup::default() }).await);
    let workers = (0..WORKERS).map(|worker| world.tasks.spawn(work(Arc::clone(&world), worker, seed)));
    let watching = CancellationToken::new();
    let watcher = world.tasks.spawn(watch(Arc::clone(&world), seed, watching.clone()));
    let mut outcomes = BTreeMap::new();
    for worker in futures_util::future::join_all(workers).await {
        outcomes.extend(worker.unwrap());
    }
    world.plan.clear();
    tokio::time::sleep(Duration::from_secs(120)).await;
    watching.cancel();
    assert!(watcher.await.unwrap() > 100, "seed {seed}: handles were seen");
    let ranks = world.pod.ranks().borrow().clone();
    for rank in ranks.iter() {
        assert_eq!((rank.in_flight, rank.staging.used_blocks), (0, 0), "seed {seed}: slots lost");
    }
    assert_eq!(world.count(|counters| &counters.late_collect), 0, "seed {seed}");
    let ended: u64 = world.ended().values().sum();
    assert_eq!(world.count(|counters| &counters.started), ended, "seed {seed}: {:?}", world.ended());
    assert!(outcomes.values().filter(|landed| **landed).count() > 50, "seed {seed}: {:?}", world.ended());
    // What is in quarantine ends when somebody needs it.
    for rank in 0..2 {
        let all: Vec<u32> = (0..SLOTS).collect();
        let mut start = world.start(world.p.prefill(&format!("last-{rank}"), &all));
        start.dp_rank = DpRank(OFFSET + rank);
        world.pod.transfer(start).await.unwrap();
    }
    let Ok(mut world) = Arc::try_unwrap(world) else { panic!("a worker is still there") };
    for (request, landed) in outcomes {
        let told = world.p.dones(&request);
        // A doubled notification arrives twice, whatever we do.
        assert!(
            told.iter().all(|count| (*count > 0) == landed),
            "seed {seed}: N: {request} landed {landed}, told {told:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_no_decode_reads_another_s_bytes_and_no_slot_is_lost() {
    for seed in 1..=4 {
        storm(seed).await;
    }
}

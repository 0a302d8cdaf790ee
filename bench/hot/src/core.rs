//! The pure core, and the descriptors made from its plans.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kv::blocks::GroupedBlocks;
use kv::copy::{CopyPlan, SlotAssignment, staging_layout};
use kv::ids::{BlockId, DpRank, TpRank};
use kv::layout::{KvLayout, MemoryKind, RegionGroup, RegionLayout};
use kv::lease::Lease;
use kv::placement::{Candidate, Draw, Order, Orders, Pairing, Placer, Wish};
use kv::slots::{Ask, SlotSet, Slots};
use kv::transfer::{Event, SourceDigest, State, Terms};
use nixl::loopback::LoopbackNet;
use nixl::{AgentName, Fabric as _, HugePages, LocalDescs, MemKind, Memory, PeerMemory, RemoteDescs};

const LAYERS: u32 = 32;
const BLOCKS: u32 = 128;
const BLOCK_BYTES: u64 = 4096;
const POOL: u32 = 1024;

#[expect(clippy::disallowed_methods, reason = "the one origin of the paths' time")]
fn start() -> Instant {
    Instant::now()
}

/// Pods of eight ranks, each rank with something to do.
pub(crate) fn choice(times: u32) -> Result<u64> {
    let rank = |number: u16| Candidate {
        pod: usize::from(number / 8),
        rank: DpRank(number % 8),
        identity: u64::from(number) * 0x9e37_79b9,
        ready: !number.is_multiple_of(13),
        cost: u64::from(number * 37 % 101),
        requests: u32::from(number % 5),
    };
    let ranks: Vec<_> = (0..64).map(rank).collect();
    let orders = Orders { prefill: Order::Least, decode: Order::Least };
    let (mut placer, wish, mut sum) = (Placer::default(), Wish::default(), 0);
    for turn in 0..times {
        let draw = Draw { turn: turn as usize, random: u64::from(turn) * 0x9e37_79b9 };
        let pair = placer.choose(Pairing::Same, &orders, black_box(&ranks), &ranks, &wish, draw).context("a pair")?;
        sum += pair.decode as u64;
    }
    Ok(sum)
}

fn granted(slots: &mut Slots<u32>, key: u32, until: Instant) -> Result<SlotSet> {
    match slots.ask(key, BLOCKS, until) {
        Ask::Granted(set) => Ok(set),
        refused @ (Ask::Queued | Ask::Exceeds { .. }) => bail!("{refused:?}"),
    }
}

pub(crate) fn slots(times: u32) -> Result<u64> {
    let (mut slots, until) = (Slots::new(POOL), start());
    // Others hold some, as they would.
    let _held = granted(&mut slots, 0, until)?;
    let mut sum = 0;
    for key in 1..=times {
        let set = granted(&mut slots, key, until)?;
        sum += u64::from(set.count());
        slots.release(set);
    }
    Ok(sum)
}

fn engine() -> KvLayout {
    let pool = u64::from(POOL) * BLOCK_BYTES;
    let region = |layer: u32| RegionLayout {
        name: format!("model.layers.{layer}"),
        base: 0x7f00_0000_0000 + u64::from(layer) * pool,
        block_len: BLOCK_BYTES,
        block_stride: BLOCK_BYTES,
        num_blocks: POOL,
        group: RegionGroup::One(0),
    };
    KvLayout {
        regions: (0..LAYERS).map(region).collect(),
        kernel_per_logical: 1,
        kernel_block_tokens: 16,
        layout: "LBHNC".to_owned(),
        backend: "CPU_ATTN".to_owned(),
        memory: MemoryKind::Dram,
        device: 0,
    }
}

/// Every seventh block, in an order of its own: no two are neighbours.
fn scattered() -> Result<GroupedBlocks> {
    let ids = (0..BLOCKS).map(|position| BlockId(position * 37 % BLOCKS * 7)).collect();
    Ok(GroupedBlocks::new(vec![ids])?)
}

pub(crate) fn plan(times: u32) -> Result<u64> {
    let (source, blocks) = (engine(), scattered()?);
    let destination = staging_layout(&source, 0x1000, POOL);
    let set = granted(&mut Slots::new(POOL), 0, start())?;
    let mut sum = 0;
    for _ in 0..times {
        let assigned = SlotAssignment::new(black_box(&blocks), &set)?;
        sum += CopyPlan::new(&source, &blocks, &destination, &assigned)?.bytes;
    }
    Ok(sum)
}

/// A transfer of two shards: granted, connected, read, verified, told.
pub(crate) fn transfer(times: u32) -> Result<u64> {
    let now = start();
    let lease = Lease::begun(Duration::from_secs(30), Duration::ZERO, now);
    let terms = Terms { lease, deadline: now + Duration::from_secs(20), shards: 2, source: SourceDigest::NotWanted };
    let events = [
        Event::StagingGranted,
        Event::PeerReady,
        Event::ShardLanded { shard: TpRank(0), bytes: 1 },
        Event::BeatSent(now),
        Event::ShardLanded { shard: TpRank(1), bytes: 1 },
        Event::Verified,
        Event::Told { sent: true },
    ];
    let mut sum = 0;
    for _ in 0..times {
        let mut state = State::new(black_box(terms));
        for event in events {
            let step = state.step(event, now);
            sum += step.effects.len() as u64;
            state = step.state;
        }
        ensure!(state.is_terminal(), "a transfer ends: {state:?}");
    }
    Ok(sum)
}

/// Both sides' lists of a read, range-checked.
pub(crate) fn descriptors(times: u32) -> Result<u64> {
    let count = u64::from(LAYERS * BLOCKS);
    let agent = LoopbackNet::new().agent(AgentName::new("bench")?);
    let region = agent.register(Memory::host(count * BLOCK_BYTES, HugePages::Off)?).wait()?;
    let there = 0x7f00_0000_0000..0x7f00_0000_0000 + 2 * count * BLOCK_BYTES;
    let peer = PeerMemory { kind: MemKind::Dram, device: 0, ranges: std::iter::once(there.clone()).collect() };
    let mut sum = 0;
    for _ in 0..times {
        let local = LocalDescs::new(&region, (0..count).map(|piece| (piece * BLOCK_BYTES, BLOCK_BYTES)))?;
        let remote = (0..count).map(|piece| (there.start + 2 * piece * BLOCK_BYTES, BLOCK_BYTES));
        sum += local.bytes() + RemoteDescs::new(black_box(&peer), remote)?.entries().len() as u64;
    }
    Ok(sum)
}

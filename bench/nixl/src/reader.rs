//! Reads as the sidecar does: slots by source address, neighbours joined, one list per read, the `pull` agent, huge pages.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use kv::blocks::GroupedBlocks;
use kv::copy::{CopyPlan, SlotAssignment, staging_layout};
use kv::ids::BlockId;
use kv::layout::{KvLayout, MemoryKind, RegionGroup, RegionLayout};
use kv::slots::{Ask, Slots};
use nixl::{
    AgentName, Fabric as _, HugePages, Lanes, LocalDescs, MemKind, Memory, PeerMemory, Read, Region, RemoteDescs,
};

use crate::work::{Blocks, Moved, Mover, Peer};

#[derive(Debug)]
pub(crate) struct Reader {
    agent: Arc<Lanes>,
    region: Region,
    peer: Option<(AgentName, PeerMemory, u64)>,
    work: Option<Work>,
}

#[derive(Debug)]
struct Work {
    source: KvLayout,
    destination: KvLayout,
    blocks: GroupedBlocks,
    slots: SlotAssignment,
}

impl Reader {
    pub(crate) fn new(agent: Arc<Lanes>, bytes: u64) -> Result<Self> {
        let memory = Memory::host(bytes, HugePages::Try)?;
        memory.fill(0..bytes, 0)?;
        let region = agent.register(memory).wait()?;
        Ok(Self { agent, region, peer: None, work: None })
    }
}

impl Mover for Reader {
    fn peer(&mut self, peer: &Peer) -> Result<()> {
        let name = self.agent.load_peer(Bytes::from(peer.metadata.clone())).wait()?;
        let ranges = std::iter::once(peer.base..peer.base + peer.bytes).collect();
        self.peer = Some((name, PeerMemory { kind: MemKind::Dram, device: 0, ranges }, peer.base));
        Ok(())
    }

    fn blocks(&mut self, blocks: &Blocks) -> Result<()> {
        let (_, memory, base) = self.peer.as_ref().context("no peer")?;
        let pool: u64 = memory.ranges.iter().map(|range| range.end - range.start).sum();
        let region = RegionLayout {
            name: String::new(),
            base: *base,
            block_len: blocks.block_bytes,
            block_stride: blocks.block_bytes,
            num_blocks: u32::try_from(pool / blocks.block_bytes)?,
            group: RegionGroup::One(0),
        };
        let source = KvLayout {
            regions: vec![region],
            kernel_per_logical: 1,
            kernel_block_tokens: 16,
            layout: String::new(),
            backend: String::new(),
            memory: MemoryKind::Dram,
            device: 0,
        };
        let count = u32::try_from(self.region.len() / blocks.block_bytes)?;
        let destination = staging_layout(&source, self.region.base(), count);
        let need = u32::try_from(blocks.ids.len())?;
        let blocks = GroupedBlocks::new(vec![blocks.ids.iter().map(|id| BlockId(*id)).collect()])?;
        #[expect(clippy::disallowed_methods, reason = "nobody waits for these slots")]
        let until = Instant::now();
        let Ask::Granted(granted) = Slots::new(count).ask((), need, until) else { bail!("no room for {need} blocks") };
        let slots = SlotAssignment::new(&blocks, &granted)?;
        self.work = Some(Work { source, destination, blocks, slots });
        Ok(())
    }

    fn once(&mut self) -> Result<Moved> {
        let (Some((peer, memory, _)), Some(work)) = (&self.peer, &self.work) else { bail!("no work") };
        let plan = CopyPlan::new(&work.source, &work.blocks, &work.destination, &work.slots)?;
        let base = self.region.base();
        let local = LocalDescs::new(&self.region, plan.runs.iter().map(|run| (run.destination - base, run.len)))?;
        let remote = RemoteDescs::new(memory, plan.runs.iter().map(|run| (run.source, run.len)))?;
        let reading = self.agent.read(Read { peer: peer.clone(), local, remote, notify: None });
        let done = reading.done.wait()?;
        Ok(Moved { wire: done.wire, pieces: done.descs })
    }

    fn lands_at(&self, position: usize) -> Option<u64> {
        let work = self.work.as_ref()?;
        let slot = work.slots.groups().first()?.get(position)?;
        Some(u64::from(slot.0) * work.destination.regions.first()?.block_stride)
    }

    fn word(&self, offset: u64) -> Result<u64> {
        let mut word = [0; 8];
        self.region.read_at(offset, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn forget(&mut self, offset: u64) -> Result<()> {
        Ok(self.region.write_at(offset, &[0xff; 8])?)
    }
}

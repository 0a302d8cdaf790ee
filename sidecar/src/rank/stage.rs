//! The decode role's state: one session of the engine, and everything that lives and ends with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kv::blocks::GroupedBlocks;
use kv::copy::SlotAssignment;
use kv::ids::{EngineId, TransferId};
use kv::layout::MemoryKind;
use kv::slots::{SlotSet, Slots};
use kv::transfer;
use nixl::Fabric;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vllm_wire::params::KvTransferParams;

use super::Waiter;
use super::landed_sets::LandedSets;
use super::telling::Untold;
use super::verify::Verification;
use crate::model::{Landed, StagingFigures, TransferError};
use crate::peers::{Peer, Peers};
use crate::session::Session;
use crate::staging::Arena;

/// A transfer whose machine has not come to its end.
#[derive(Debug)]
pub(super) struct Active {
    /// The machine.
    pub state: transfer::State,
    /// P's parameters.
    pub params: KvTransferParams,
    /// Blocks needed.
    pub blocks: u32,
    /// The slots, from grant to hand-over.
    pub slots: Option<SlotSet>,
    /// Which slot holds which block.
    pub assignment: Option<Arc<SlotAssignment>>,
    /// P's engine, once it is known.
    pub peer: Option<Arc<Peer>>,
    /// What went wrong, where the machine only knows that something did.
    pub error: Option<TransferError>,
    /// Cancelled: reads not posted yet shall not be.
    pub gave_up: CancellationToken,
    /// Who of P has to be told that it has landed.
    pub untold: Option<Untold>,
    /// Who waits for the end.
    pub waiters: Vec<Waiter>,
    /// It goes on without anybody waiting.
    pub detached: bool,
    /// What will be published when it has landed.
    pub landed: Option<Arc<Landed>>,
    /// How long P's lease was said to be, and how old it was at the start.
    pub lease: (Duration, Duration),
    /// When it is over, heartbeats counted in.
    pub lease_over: Instant,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// What is compared with the source, if anything is.
    pub verification: Option<Verification>,
    /// Marks on its way.
    pub marks: Marks,
}

impl Active {
    /// The generation of pull agents that it reads by.
    pub(super) fn generation(&self) -> Option<u64> {
        self.peer.as_ref().map(|peer| peer.generation)
    }
}

/// When things happened; `stages_us` is made of these.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    /// Asked for.
    pub started: Instant,
    /// Has slots.
    pub granted: Option<Instant>,
    /// The reads could begin.
    pub reads_due: Option<Instant>,
    /// All bytes here.
    pub arrived: Option<Instant>,
    /// Not wanted any more, but being read.
    pub quiescing: Option<Instant>,
    /// The slowest way to an accepted post so far; shown while the read goes on.
    pub post: Duration,
    /// The slowest way to the start of a post, of the reads that have ended.
    pub waited: Duration,
    /// The slowest read so far.
    pub wire: Duration,
}

/// Pull agents that no new read is given to, until they are gone.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// The agents.
    pub agents: Vec<Arc<dyn Fabric>>,
    /// They are being closed.
    pub closing: bool,
}

/// One session's state.
#[derive(Debug)]
pub(super) struct Stage {
    /// The session.
    pub session: Session,
    /// The arena's slots (the same in all shards).
    pub slots: Slots<TransferId>,
    /// Remote engines.
    pub peers: Peers,
    /// Which generation of pull agents new reads are given to.
    pub generation: u64,
    /// New pull agents are being made.
    pub renewing: bool,
    /// Earlier generations that still have agents.
    pub outgoing: BTreeMap<u64, Outgoing>,
    /// Earlier generations with an agent that could not be destroyed: each holds a slot at least for ever.
    pub stuck: BTreeSet<u64>,
    /// Slots that hardware may still write for an agent of this generation.
    pub quarantine: BTreeMap<u64, Vec<SlotSet>>,
    /// Slots that are being zeroed.
    pub zeroing: u32,
    /// Transfers under way.
    pub active: BTreeMap<TransferId, Active>,
    /// Landed slots by the virtual engine's request id.
    pub landed: LandedSets,
}

impl Stage {
    /// A fresh stage.
    pub(super) fn new(session: Session) -> Self {
        let slots = Slots::new(session.slots);
        Self {
            session,
            slots,
            peers: Peers::default(),
            generation: 0,
            renewing: false,
            outgoing: BTreeMap::new(),
            stuck: BTreeSet::new(),
            quarantine: BTreeMap::new(),
            zeroing: 0,
            active: BTreeMap::new(),
            landed: LandedSets::default(),
        }
    }

    /// The virtual engine's id: which session this is.
    pub(super) fn id(&self) -> &EngineId {
        &self.session.virtual_engine.id
    }

    /// All agents.
    pub(super) fn agents(&self) -> Vec<Arc<dyn Fabric>> {
        let of = |shard: &crate::session::Shard| [Arc::clone(&shard.pull.fabric), Arc::clone(&shard.serve)];
        let outgoing =
            self.outgoing.values().filter(|outgoing| !outgoing.closing).flat_map(|outgoing| &outgoing.agents);
        self.session.shards.iter().flat_map(of).chain(outgoing.cloned()).collect()
    }

    /// Slots in quarantine because of one generation.
    pub(super) fn quarantined_by(&self, generation: u64) -> u32 {
        self.quarantine.get(&generation).map_or(0, |sets| sets.iter().map(SlotSet::count).sum())
    }

    /// All arenas, by TP rank.
    pub(super) fn arenas(&self) -> Vec<Arena> {
        self.session.shards.iter().map(|shard| shard.arena.clone()).collect()
    }

    /// Bytes that a request's blocks have, over all shards: the regions of each group times its blocks.
    pub(super) fn bytes_of(&self, blocks: &GroupedBlocks) -> u64 {
        use kv::layout::RegionGroup;
        let mut bytes: u64 = 0;
        for shard in &self.session.shards {
            let per_logical = u64::from(shard.engine.kernel_per_logical);
            for region in &shard.engine.regions {
                for (group, list) in (0_u16..).zip(blocks.groups()) {
                    if region.group == RegionGroup::One(group) || region.group == RegionGroup::Shared {
                        let blocks = u64::try_from(list.len()).unwrap_or(u64::MAX);
                        bytes =
                            bytes.saturating_add(region.block_len.saturating_mul(per_logical).saturating_mul(blocks));
                    }
                }
            }
        }
        bytes
    }

    /// Whether no slot is left that may ever be used again: agents that could not be destroyed may still write all of them.
    pub(super) fn is_lost(&self) -> bool {
        let usage = self.slots.usage();
        usage.quarantined == usage.capacity
    }

    /// The figures to show.
    pub(super) fn figures(&self) -> StagingFigures {
        let usage = self.slots.usage();
        // To the allocator, slots whose quarantine may yet end are held like any other.
        let passing: u32 = self.quarantine.values().flatten().map(SlotSet::count).sum();
        StagingFigures {
            capacity_blocks: usage.capacity,
            used_blocks: usage.held.saturating_sub(passing),
            zeroing_blocks: self.zeroing,
            quarantined_blocks: usage.quarantined.saturating_add(passing),
            block_bytes: self.slot_bytes(),
            kind: Some(self.session.staging),
            device: self.session.shards.first().and_then(|shard| {
                let layout = &shard.arena.layout;
                (layout.memory == MemoryKind::Vram).then_some(layout.device)
            }),
        }
    }

    /// Bytes of one slot over all shards.
    pub(super) fn slot_bytes(&self) -> u64 {
        self.session.shards.iter().map(|shard| shard.engine.slot_bytes()).sum()
    }
}

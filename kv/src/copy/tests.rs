//! Tests of the copy plan; the property against copying block by block.

use std::collections::BTreeMap;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::layout::MemoryKind;
use crate::slots::{Ask, Slots};
use crate::testing::at;

fn layout(base: u64, blocks: u32, kernel_per_logical: u32, stride: u64) -> KvLayout {
    let region = |index: u64| RegionLayout {
        name: String::new(),
        base: base + index * 0x100_0000,
        block_len: 16,
        block_stride: stride,
        num_blocks: blocks * kernel_per_logical,
        group: RegionGroup::One(0),
    };
    KvLayout {
        regions: vec![region(0), region(1)],
        kernel_per_logical,
        kernel_block_tokens: 16,
        layout: "LBHNC".to_owned(),
        backend: "CPU_ATTN".to_owned(),
        memory: MemoryKind::Dram,
        device: 0,
    }
}

fn blocks(ids: &[u32]) -> GroupedBlocks {
    GroupedBlocks::new(vec![ids.iter().copied().map(BlockId).collect()]).unwrap()
}

fn slots(capacity: u32, need: u32) -> SlotSet {
    let until: Instant = at(0);
    match Slots::<u8>::new(capacity).ask(0, need, until) {
        Ask::Granted(set) => set,
        other @ (Ask::Queued | Ask::Exceeds { .. }) => panic!("{other:?}"),
    }
}

#[test]
fn neighbours_in_any_order_become_one_run_per_region() {
    let (source, engine) = (layout(0x1_0000_0000, 32, 1, 16), layout(0, 32, 1, 16));
    let arena = staging_layout(&engine, 0x9_0000_0000, 8);
    let wanted = blocks(&[7, 5, 6]);
    let assigned = SlotAssignment::new(&wanted, &slots(8, 3)).unwrap();
    assert_eq!(
        assigned.groups(),
        [vec![SlotId(2), SlotId(0), SlotId(1)]],
        "prompt order is kept for the decode engine"
    );
    let plan = CopyPlan::new(&source, &wanted, &arena, &assigned).unwrap();
    let run = |region: u64| Run {
        source: 0x1_0000_0000 + region * 0x100_0000 + 5 * 16,
        destination: 0x9_0000_0000 + region * 8 * 16,
        len: 48,
    };
    assert_eq!(plan, CopyPlan { runs: vec![run(0), run(1)], bytes: 96, pieces: 6 });
}

#[test]
fn gaps_between_blocks_keep_the_runs_apart() {
    let (source, engine) = (layout(0x1_0000_0000, 32, 1, 24), layout(0, 32, 1, 16));
    let arena = staging_layout(&engine, 0x9_0000_0000, 8);
    let wanted = blocks(&[5, 6]);
    let assigned = SlotAssignment::new(&wanted, &slots(8, 2)).unwrap();
    assert_eq!(CopyPlan::new(&source, &wanted, &arena, &assigned).unwrap().runs.len(), 4);
}

#[test]
fn ids_that_a_side_does_not_have_are_refused() {
    let source = layout(0, 8, 1, 16);
    let arena = staging_layout(&source, 0, 2);
    let plan = |ids: &[u32], set: SlotSet| {
        let wanted = blocks(ids);
        CopyPlan::new(&source, &wanted, &arena, &SlotAssignment::new(&wanted, &set)?)
    };
    assert_eq!(plan(&[8], slots(2, 1)), Err(PlanError::BlockOutOfRange { block: BlockId(8), blocks: 8 }));
    assert_eq!(plan(&[1, 2, 3], slots(3, 3)), Err(PlanError::SlotOutOfRange { slot: SlotId(2), slots: 2 }));
    assert_eq!(plan(&[1, 2], slots(2, 1)), Err(PlanError::SlotCount { slots: 1, blocks: 2 }));
    let two_groups = GroupedBlocks::new(vec![vec![BlockId(0)], vec![BlockId(1)]]).unwrap();
    let assigned = SlotAssignment::new(&two_groups, &slots(2, 2)).unwrap();
    assert_eq!(
        CopyPlan::new(&source, &two_groups, &arena, &assigned),
        Err(PlanError::GroupCount { got: 2, expected: 1 })
    );
}

proptest! {
    /// Every kernel block's bytes go where its slot says, whatever was merged.
    #[test]
    fn a_plan_moves_each_byte_once_to_its_slot(
        ids in prop::collection::btree_set(0u32..40, 1..20).prop_shuffle_ids(),
        kernel_per_logical in 1u32..4,
        source_gap in 0u64..2,
    ) {
        let source = layout(1 << 40, 40, kernel_per_logical, 16 + 8 * source_gap);
        let arena = staging_layout(&layout(0, 40, kernel_per_logical, 16), 1 << 42, 20);
        let wanted = blocks(&ids);
        let need = u32::try_from(ids.len()).unwrap();
        let assigned = SlotAssignment::new(&wanted, &slots(20, need)).unwrap();
        let plan = CopyPlan::new(&source, &wanted, &arena, &assigned).unwrap();
        let mut moved = BTreeMap::new();
        for run in &plan.runs {
            for byte in 0..run.len {
                prop_assert!(moved.insert(run.destination + byte, run.source + byte).is_none(), "written twice");
            }
        }
        prop_assert_eq!(u64::try_from(moved.len()).unwrap(), plan.bytes);
        for (from, to) in source.regions.iter().zip(&arena.regions) {
            for (id, slot) in ids.iter().zip(&assigned.groups()[0]) {
                for kernel in 0..kernel_per_logical {
                    for byte in 0..from.block_len {
                        let source_at = from.base + u64::from(id * kernel_per_logical + kernel) * from.block_stride + byte;
                        let slot_at = to.base + u64::from(slot.0 * kernel_per_logical + kernel) * to.block_stride + byte;
                        prop_assert_eq!(moved.remove(&slot_at), Some(source_at));
                    }
                }
            }
        }
        prop_assert!(moved.is_empty(), "bytes outside the slots");
    }
}

trait ShuffleIds {
    fn prop_shuffle_ids(self) -> BoxedStrategy<Vec<u32>>;
}

impl<S: Strategy<Value = std::collections::BTreeSet<u32>> + 'static> ShuffleIds for S {
    fn prop_shuffle_ids(self) -> BoxedStrategy<Vec<u32>> {
        self.prop_map(|set| set.into_iter().collect::<Vec<_>>()).prop_shuffle().boxed()
    }
}

//! Tests of what is chosen and of which bytes make a page.

use proptest::prelude::*;

use super::*;
use crate::layout::MemoryKind;
use crate::slots::{Ask, Slots};
use crate::testing::at;

fn blocks(groups: &[&[u32]]) -> GroupedBlocks {
    let groups = groups.iter().map(|ids| ids.iter().copied().map(BlockId).collect()).collect();
    GroupedBlocks::new(groups).expect("groups of blocks")
}

fn region(base: u64, stride: u64, group: RegionGroup) -> RegionLayout {
    RegionLayout { name: String::new(), base, block_len: 64, block_stride: stride, num_blocks: 100, group }
}

fn layout(regions: Vec<RegionLayout>) -> KvLayout {
    KvLayout {
        regions,
        kernel_per_logical: 2,
        kernel_block_tokens: 16,
        layout: "LBHNC".to_owned(),
        backend: "X".to_owned(),
        memory: MemoryKind::Dram,
        device: 0,
    }
}

#[test]
fn more_is_more() {
    assert!(Verify::Off < Verify::Sample(2) && Verify::Sample(2) < Verify::Sample(3));
    assert!(Verify::Sample(u32::MAX) < Verify::Full);
}

#[test]
fn what_is_chosen_is_told_by_group() {
    let (all, none) = (blocks(&[&[7, 3, 9], &[4, 5]]), Chosen::new(Verify::Off, &blocks(&[&[1]]), 0));
    assert_eq!(none, None);
    let full = Chosen::new(Verify::Full, &all, 1).expect("all");
    assert_eq!(
        (full.count(), full.blocks(&all)),
        (5, vec![vec![BlockId(7), BlockId(3), BlockId(9)], vec![BlockId(4), BlockId(5)]])
    );
    let ends = Chosen::new(Verify::Sample(2), &all, 1).expect("the ends");
    assert_eq!(ends.blocks(&all), [[BlockId(7)], [BlockId(5)]]);
    assert_eq!(Chosen::new(Verify::Sample(1), &all, 1), Some(ends), "fewer than two are two");
}

#[test]
fn where_the_chosen_blocks_have_landed_is_told_by_group() {
    let all = blocks(&[&[7, 3, 9], &[4, 5]]);
    let Ask::Granted(set) = Slots::new(5).ask((), 5, at(0)) else { panic!("an empty arena has slots") };
    let slots = SlotAssignment::new(&all, &set).expect("a slot for each block");
    let ends = Chosen::new(Verify::Sample(2), &all, 1).expect("the ends");
    // In each group ascending blocks have ascending slots.
    assert_eq!(ends.slots(&slots), [[BlockId(1)], [BlockId(4)]]);
}

#[test]
fn chance_is_splitmix64_as_others_have_it() {
    let mut random = 0;
    let words = [(); 3].map(|()| below(&mut random, usize::MAX));
    assert_eq!(words, [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]);
}

#[test]
fn pages_go_by_group_block_and_region() {
    let layout = layout(vec![
        region(0, 64, RegionGroup::One(0)),
        region(1_000_000, 64, RegionGroup::One(1)),
        region(2_000_000, 96, RegionGroup::Shared),
    ]);
    let told = pages(&layout, &[vec![BlockId(8), BlockId(2)], vec![BlockId(5)]]);
    let told: Vec<_> = told.into_iter().map(|page| (page.block.0, page.region)).collect();
    assert_eq!(told, [(8, 0), (8, 2), (2, 0), (2, 2), (5, 1), (5, 2)]);
    assert_eq!((pages_per_block(&layout, 0), pages_per_block(&layout, 1), pages_per_block(&layout, 7)), (2, 2, 1));
}

#[test]
fn a_page_leaves_out_what_lies_between_kernel_blocks() {
    let layout = layout(vec![region(1_000, 64, RegionGroup::Shared), region(5_000, 96, RegionGroup::Shared)]);
    let of = |region| spans(&layout, Page { region, block: BlockId(3) }).collect::<Vec<_>>();
    assert_eq!(of(0), [(1_000 + 6 * 64, 128)], "neighbours are one piece");
    assert_eq!(of(1), [(5_000 + 6 * 96, 64), (5_000 + 7 * 96, 64)]);
    assert_eq!(of(2), []);
}

proptest! {
    #[test]
    fn a_sample_has_its_size_both_ends_and_no_number_twice(total in 1_usize..500, count in 1_usize..600, seed in any::<u64>()) {
        let chosen = sample(total, count, seed);
        prop_assert_eq!(chosen.len(), count.max(2).min(total));
        prop_assert!(chosen.is_sorted_by(|a, b| a < b));
        prop_assert!(chosen.first() == Some(&0) && chosen.last() == Some(&(total - 1)));
        prop_assert_eq!(chosen, sample(total, count, seed), "the same seed, the same choice");
    }
}

#[test]
fn every_block_is_sampled_at_some_time() {
    let mut seen = vec![0_u32; 20];
    for seed in 0..2_000 {
        sample(20, 5, seed).into_iter().for_each(|position| seen[position] += 1);
    }
    assert_eq!((seen[0], seen[19]), (2_000, 2_000));
    // Three of eighteen: each a sixth of the time.
    assert!(seen[1..19].iter().all(|count| (250..420).contains(count)), "{seen:?}");
}

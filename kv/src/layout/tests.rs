//! Tests of the layout checks.

use super::*;

fn layout() -> KvLayout {
    let region = |index: u64| RegionLayout {
        name: format!("layers.{index}"),
        base: 0x1000 + index * 0x10_0000,
        block_len: 64,
        block_stride: 96,
        num_blocks: 8,
        group: RegionGroup::One(0),
    };
    KvLayout {
        regions: vec![region(0), region(1)],
        kernel_per_logical: 2,
        kernel_block_tokens: 16,
        layout: "LBHNC".to_owned(),
        backend: "CPU_ATTN".to_owned(),
        memory: MemoryKind::Dram,
        device: 0,
    }
}

#[test]
fn sizes_follow_from_the_geometry() {
    let layout = layout().checked().unwrap();
    assert_eq!(layout.block_tokens(), 32);
    assert_eq!([0, 1, 32, 33].map(|tokens| layout.blocks_for(tokens)), [0, 1, 1, 2]);
    assert_eq!(layout.slot_bytes(), 2 * 2 * 96);
    assert_eq!(layout.logical_blocks(), 4);
    assert_eq!(layout.groups(), 1);
}

#[test]
fn blocks_without_gaps_and_several_groups_are_layouts_too() {
    let mut layout = layout();
    (layout.regions[0].block_stride, layout.regions[1].group) = (64, RegionGroup::One(2));
    assert_eq!(layout.checked().map(|layout| layout.groups()), Ok(3));
}

#[test]
fn impossible_layouts_are_refused_by_name() {
    let check = |change: fn(&mut KvLayout), expect: LayoutError| {
        let mut changed = layout();
        change(&mut changed);
        assert_eq!(changed.checked(), Err(expect));
    };
    check(|l| l.regions.clear(), LayoutError::NoRegion);
    check(|l| l.kernel_per_logical = 0, LayoutError::Zero("physical_blocks_per_logical_kv_block"));
    check(|l| l.kernel_block_tokens = 0, LayoutError::Zero("block_size"));
    check(|l| l.regions[1].block_len = 0, LayoutError::Zero("block_lens"));
    check(|l| l.regions[1].block_stride = 32, LayoutError::StrideBelowBlock { region: 1, stride: 32, block_len: 64 });
    check(|l| l.regions[0].base = u64::MAX - 5, LayoutError::Overflow { region: 0 });
}

#[test]
fn caches_exchange_blocks_only_when_the_bytes_mean_the_same() {
    let ours = layout();
    let check = |change: fn(&mut KvLayout), expect: &str| {
        let mut theirs = layout();
        change(&mut theirs);
        assert_eq!(ours.compatible_with(&theirs).unwrap_err().to_string(), expect);
    };
    let mut elsewhere = layout();
    elsewhere.regions[0].base = 0x9000;
    elsewhere.regions[0].num_blocks = 99;
    assert_eq!(ours.compatible_with(&elsewhere), Ok(()));
    check(|l| l.regions.truncate(1), "2 regions here, 1 there");
    check(|l| l.kernel_block_tokens = 32, "block size in tokens is 16 here, 32 there");
    check(|l| l.layout = "LBNHC".to_owned(), "KV layout is \"LBHNC\" here, \"LBNHC\" there");
    check(|l| l.regions[1].block_len = 32, "region 1: block length differs");
    check(|l| l.regions[1].group = RegionGroup::Shared, "region 1: KV-cache group differs");
}

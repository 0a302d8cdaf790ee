//! Tests of digests: what they are over, and what they cost.

use kv::ids::BlockId;
use kv::layout::{MemoryKind, RegionGroup, RegionLayout};
use nixl::HugePages;

use super::*;

fn layout(base: u64, block_len: u64, stride: u64, blocks: u32) -> KvLayout {
    let region = |index: u64| RegionLayout {
        name: String::new(),
        base: base + index * stride * 2 * u64::from(blocks),
        block_len,
        block_stride: stride,
        num_blocks: 2 * blocks,
        group: RegionGroup::Shared,
    };
    KvLayout {
        regions: vec![region(0), region(1)],
        kernel_per_logical: 2,
        kernel_block_tokens: 16,
        layout: "LBHNC".to_owned(),
        backend: "X".to_owned(),
        memory: MemoryKind::Dram,
        device: 0,
    }
}

fn filled(len: u64) -> Memory {
    let memory = Memory::host(len, HugePages::Off).unwrap();
    let bytes: Vec<u8> = (0..len).map(|at| u8::try_from((at * 131 + at / 251) % 256).unwrap()).collect();
    memory.write_at(0, &bytes).unwrap();
    memory
}

#[test]
fn a_page_s_digest_is_over_its_kernel_blocks_without_the_gaps() {
    let memory = filled(96 * 2 * 4 * 2);
    let layout = layout(memory.base(), 64, 96, 4);
    let pages = kv::digest::pages(&layout, &[vec![BlockId(3), BlockId(1)]]);
    let (digests, bytes) = digest_pages(&memory, &layout, &pages).unwrap();
    assert_eq!(bytes, 2 * 2 * 128);
    let expected = |region: u64, block: u64| {
        let mut page = vec![0; 128];
        let start = region * 96 * 8 + block * 2 * 96;
        memory.read_at(start, &mut page[..64]).unwrap();
        memory.read_at(start + 96, &mut page[64..]).unwrap();
        let mut digest = PageDigest::new();
        digest.update(&page);
        digest.end()
    };
    assert_eq!(digests, [expected(0, 3), expected(1, 3), expected(0, 1), expected(1, 1)]);
    // Bytes in a gap are nobody's.
    memory.write_at(64, &[9]).unwrap();
    memory.write_at(3 * 2 * 96 + 64, &[9]).unwrap();
    assert_eq!(digest_pages(&memory, &layout, &pages).unwrap().0, digests);
    memory.write_at(3 * 2 * 96 + 63, &[9]).unwrap();
    assert_ne!(digest_pages(&memory, &layout, &pages).unwrap().0, digests);
}

#[test]
fn a_block_has_the_same_digest_wherever_it_lies() {
    let memory = filled(96 * 2 * 4 * 2);
    let wide = layout(memory.base(), 64, 96, 4);
    let other = Memory::host(64 * 2 * 9 * 2, HugePages::Off).unwrap();
    let dense = layout(other.base(), 64, 64, 9);
    for region in 0..2 {
        let from: Vec<_> = spans(&wide, Page { region, block: BlockId(2) }).collect();
        let (mut to, _) = spans(&dense, Page { region, block: BlockId(7) }).next().unwrap();
        for (address, len) in from {
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            memory.read_at(address - memory.base(), &mut bytes).unwrap();
            other.write_at(to - other.base(), &bytes).unwrap();
            to += len;
        }
    }
    let of = |memory, layout, block| {
        digest_pages(memory, layout, &kv::digest::pages(layout, &[vec![BlockId(block)]])).unwrap()
    };
    assert_eq!(of(&memory, &wide, 2), of(&other, &dense, 7));
    assert_ne!(of(&memory, &wide, 2).0, of(&other, &dense, 6).0);
}

#[test]
fn the_digest_of_a_transfer_depends_on_every_page_s() {
    let one = over_all(&[vec![1, 2], vec![3]]);
    assert_eq!(one, over_all(&[vec![1, 2, 3]]), "how shards are cut is not part of it");
    assert_ne!(one, over_all(&[vec![2, 1], vec![3]]));
}

/// Prints what digesting costs (`cargo test -- --nocapture`), for docs/verification.md.
#[test]
fn digesting_is_fast() {
    let blocks = 512;
    // Llama 3.1 8B: 64 KiB per block and layer; here two regions of it.
    let memory = Memory::host(2 * u64::from(blocks) * 65_536, HugePages::Try).unwrap();
    memory.fill(0..memory.len(), 7).unwrap();
    let layout = layout(memory.base(), 32_768, 32_768, blocks);
    let pages = kv::digest::pages(&layout, &[(0..blocks).map(BlockId).collect()]);
    let best = (0..5).map(|_| {
        let begun = tokio::time::Instant::now();
        let (_, bytes) = digest_pages(&memory, &layout, &pages).unwrap();
        assert_eq!(bytes, memory.len());
        begun.elapsed()
    });
    let best = best.min().unwrap();
    let mb_per_s = u128::from(memory.len()) / best.as_micros().max(1);
    println!("digest: {}.{} GB/s on one core", mb_per_s / 1000, mb_per_s % 1000 / 100);
    assert!(mb_per_s >= 200, "{mb_per_s} MB/s");
}

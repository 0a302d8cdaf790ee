//! The kernels' host build against `xxhash-rust`, `kv`'s definition and plain Rust; and what a list refuses.
#![allow(unsafe_code, reason = "runs kernels over addresses")]

use cuda_host::Order;
use kv::digest::PageDigest;
use proptest::prelude::*;
use xxhash_rust::xxh64::xxh64;

use super::*;

const CASES: u32 = 1024;

fn order() -> impl Strategy<Value = Order> {
    (0_u32..128, 0_u32..128).prop_map(|(first, step)| Order { first, step })
}

fn extent(memory: &[u8]) -> Extent {
    Extent { base: memory.as_ptr().addr() as u64, len: memory.len() as u64 }
}

/// Random bytes, the same for the same seed.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let word = |at: u64| xxh64(&at.to_le_bytes(), seed).to_le_bytes();
    (0..len.div_ceil(8) as u64).flat_map(word).take(len).collect()
}

fn chunk_digests(memory: &[u8], list: &List, order: Order) -> Vec<u64> {
    let mut digests = vec![0x5a5a; usize::try_from(list.pieces).unwrap()];
    assert!(list.words.iter().step_by(5).all(|address| extent(memory).base <= *address));
    // SAFETY: `list` was checked against `memory`, and its chunks are as many as `digests`.
    unsafe { cuda_host::digest_chunks(&list.words, list.chunk_blocks(), &mut digests, order) };
    digests
}

fn digests(memory: &[u8], list: &List, order: Order) -> Vec<u64> {
    let chunks = chunk_digests(memory, list, order);
    let mut digests = vec![0x5a5a; usize::try_from(list.count).unwrap()];
    // SAFETY: both are as many as the list says.
    unsafe { cuda_host::fold_chunks(&list.words, list.entry_blocks(), &chunks, &mut digests, order) };
    digests
}

/// The page's KV, without the gaps.
fn kv_of(memory: &[u8], page: &Page) -> Vec<u8> {
    let at = |offset: u64| usize::try_from(offset).unwrap();
    let block = |index: u64| {
        let start = at(page.offset + index * page.stride);
        memory[start..start + at(page.block_len)].iter().copied()
    };
    (0..page.blocks).flat_map(block).collect()
}

/// A page of up to about 20 KiB: aligned or not, with gaps or not, of whole chunks or not.
fn page() -> impl Strategy<Value = Page> {
    let block_len = prop_oneof![1_u64..100, Just(4096_u64), (1_u64..64).prop_map(|of| of * 64), 1_u64..5000];
    let gap = prop_oneof![Just(0_u64), Just(64_u64), 1_u64..40];
    let offset = prop_oneof![(0_u64..8).prop_map(|of| of * 64), 0_u64..100];
    (block_len, gap, offset, 0_u64..9).prop_map(|(block_len, gap, offset, blocks)| Page {
        offset,
        block_len,
        stride: block_len + gap,
        blocks: blocks.min(20_000 / block_len),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn digests_of_pages_are_those_of_the_host(given in prop::collection::vec(page(), 1..12), seed: u64, order in order()) {
        let memory = bytes(48 << 10, seed);
        let list = pages(extent(&memory), &given).unwrap();
        let ours = digests(&memory, &list, order);
        for (page, ours) in given.iter().zip(ours) {
            let mut digest = PageDigest::new();
            digest.update(&kv_of(&memory, page));
            prop_assert_eq!(ours, digest.end(), "{:?}", page);
        }
    }

    #[test]
    fn a_chunk_s_digest_is_xxh64(given in page(), seed: u64, order in order()) {
        let memory = bytes(48 << 10, seed);
        let list = pages(extent(&memory), &[given]).unwrap();
        let expected: Vec<u64> = kv_of(&memory, &given).chunks(4096).map(|chunk| xxh64(chunk, 0)).collect();
        prop_assert_eq!(chunk_digests(&memory, &list, order), expected);
    }

    #[test]
    fn zeroing_touches_the_ranges_and_nothing_else(
        given in prop::collection::vec((0_u64..60_000, 0_u64..40_000), 0..8), seed: u64, order in order(),
    ) {
        let mut memory = bytes(100_000, seed);
        let given: Vec<_> = given.into_iter().map(|(start, len)| start..start + len).collect();
        let mut expected = memory.clone();
        for range in &given {
            expected[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].fill(0);
        }
        let list = ranges(Extent { base: memory.as_mut_ptr().addr() as u64, len: memory.len() as u64 }, &given).unwrap();
        // SAFETY: `list` was checked against `memory`, which nobody else uses.
        unsafe { cuda_host::zero_ranges(&list.words, list.pieces, order) };
        prop_assert!(memory == expected);
    }

    #[test]
    fn gathered_blocks_lie_in_order_and_scatter_back(
        slots in prop::collection::btree_set(0_u64..16, 1..12), (len, start) in (1_u64..9000, 0_u64..64), seed: u64, order in order(),
    ) {
        let slots: Vec<u64> = slots.into_iter().collect();
        // One random order of the slots.
        let slots: Vec<u64> = {
            let mut slots = slots;
            slots.sort_by_key(|slot| xxh64(&slot.to_le_bytes(), seed));
            slots
        };
        let arena = bytes(usize::try_from(start + 16 * len).unwrap(), seed);
        let mut range = vec![0x5a_u8; slots.len() * usize::try_from(len).unwrap() + 7];
        let gather: Vec<Move> = (0..).zip(&slots).map(|(at, slot)| Move { from: start + slot * len, to: at * len, bytes: len }).collect();
        let list = moves(extent(&arena), Extent { base: range.as_mut_ptr().addr() as u64, len: range.len() as u64 }, &gather).unwrap();
        // SAFETY: checked against both, which nobody else uses and which have no byte in common.
        unsafe { cuda_host::copy_ranges(&list.words, list.pieces, order) };
        for (slot, block) in slots.iter().zip(range.chunks(usize::try_from(len).unwrap())) {
            let from = usize::try_from(start + slot * len).unwrap();
            prop_assert!(block == &arena[from..from + block.len()]);
        }
        prop_assert!(range.ends_with(&[0x5a; 7]));

        let mut other = vec![0x5a_u8; arena.len()];
        let scatter: Vec<Move> = gather.iter().map(|each| Move { from: each.to, to: each.from, bytes: len }).collect();
        let list = moves(extent(&range), Extent { base: other.as_mut_ptr().addr() as u64, len: other.len() as u64 }, &scatter).unwrap();
        // SAFETY: as above.
        unsafe { cuda_host::copy_ranges(&list.words, list.pieces, order) };
        for (at, byte) in (0_u64..).zip(&other) {
            let scattered = at >= start && slots.contains(&((at - start) / len));
            prop_assert_eq!(*byte, if scattered { arena[usize::try_from(at).unwrap()] } else { 0x5a });
        }
    }
}

#[test]
fn what_leaves_the_memory_is_refused() {
    let memory = Extent { base: 4096, len: 1000 };
    let page = Page { offset: 0, block_len: 100, stride: 120, blocks: 8 };
    assert_eq!(pages(memory, &[page]).unwrap().words, [4096, 0, 800, 100, 120]);
    let last = Page { offset: 60, ..page };
    assert!(pages(memory, &[page, last]).is_ok(), "its last byte is the memory's");
    let error = pages(memory, &[page, Page { offset: 61, ..page }]).unwrap_err();
    assert_eq!(error.to_string(), "entry 1: 940 bytes at offset 61 leave memory of 1000 bytes");
    for blocks in [9, 1 << 60, u64::MAX] {
        assert!(matches!(pages(memory, &[Page { blocks, ..page }]), Err(ListError::OutOfRange { index: 0, .. })));
    }
    for (block_len, stride) in [(0, 0), (100, 99)] {
        let refused = pages(memory, &[Page { block_len, stride, ..page }]).unwrap_err();
        assert_eq!(refused, ListError::Stride { index: 0, block_len, stride });
    }
    assert!(ranges(memory, &[900..1000, 900..1001]).is_err());
    assert!(ranges(memory, &[5..5, u64::MAX - 1..u64::MAX]).is_err());
    let other = Extent { base: 1 << 20, len: 10 };
    assert!(moves(memory, other, &[Move { from: 990, to: 0, bytes: 10 }]).is_ok());
    assert!(moves(memory, other, &[Move { from: 991, to: 0, bytes: 10 }]).is_err());
    assert!(moves(memory, other, &[Move { from: 0, to: 1, bytes: 10 }]).is_err());
}

#[test]
fn a_list_longer_than_a_launch_is_refused() {
    let memory = Extent { base: 0, len: u64::MAX };
    assert_eq!(ranges(memory, &[0..1 << 44, 0..1 << 45]).unwrap_err(), ListError::TooLong { pieces: 3 << 30 });
    assert_eq!(ranges(memory, &[0..16_384, 5..5, 1..16_386]).unwrap().pieces, 3);
}

//! The kernels on the device against the host's own computation. Their arithmetic in all its cases: `src/list/tests.rs`.

use cuda::{DeviceMemory, Page};
use cuda_host::driver::Count;
use kv::digest::PageDigest;

use crate::{Rig, bytes};

fn of_host(memory: &[u8], page: &Page) -> u64 {
    let mut digest = PageDigest::new();
    for block in 0..page.blocks {
        let start = usize::try_from(page.offset + block * page.stride).unwrap();
        digest.update(&memory[start..start + usize::try_from(page.block_len).unwrap()]);
    }
    digest.end()
}

#[test]
fn digests_equal_the_host_s_whatever_the_pages_are() {
    let rig = Rig::take();
    let content = bytes(24 << 20, 3);
    let memory = DeviceMemory::new(&rig.gpu, 24 << 20).unwrap();
    memory.write_at(0, &content).unwrap();
    // Llama 3.1 8B's pages, with gaps, unaligned, short, empty, one of many chunks.
    let page = |offset, block_len, stride, blocks| Page { offset, block_len, stride, blocks };
    let mut pages: Vec<Page> = (0..200).map(|slot| page(slot * 65_536, 32_768, 32_768, 2)).collect();
    pages.extend((0..50).map(|slot| page(slot * 100_001 + 1, 1000 + slot, 2000, 1 + slot % 7)));
    pages.extend([page(0, 4096, 8192, 300), page(7, 1, 1, 31), page(9, 5, 5, 0), page(0, 24 << 20, 24 << 20, 1)]);
    let digests = memory.digests(&pages).unwrap();
    for (page, digest) in pages.iter().zip(&digests) {
        assert_eq!(*digest, of_host(&content, page), "{page:?}");
    }
    assert_eq!(digests.len(), pages.len());
    let chunks = memory.chunk_digests(&pages).unwrap();
    assert_eq!(
        chunks[..16],
        content[..65_536].chunks(4096).map(|chunk| xxhash_rust::xxh64::xxh64(chunk, 0)).collect::<Vec<_>>()
    );
    assert!(memory.digests(&[]).unwrap().is_empty() && memory.chunk_digests(&[page(9, 5, 5, 0)]).unwrap().is_empty());
    // One byte more or less is seen.
    memory.write_at(3 * 65_536 + 77, &[content[3 * 65_536 + 77] ^ 1]).unwrap();
    let again = memory.digests(&pages[..200]).unwrap();
    let changed: Vec<usize> = (0..200).filter(|slot| again[*slot] != digests[*slot]).collect();
    assert_eq!(changed, [3]);
}

#[test]
fn zeroing_gathering_and_scattering_move_what_they_name() {
    let rig = Rig::take();
    let content = bytes(4 << 20, 5);
    let memory = DeviceMemory::new(&rig.gpu, 4 << 20).unwrap();
    memory.write_at(0, &content).unwrap();
    let slots: Vec<u64> = vec![9, 2, 30, 31, 0, 17];
    let blocks: Vec<_> = slots.iter().map(|slot| slot * 65_536..(slot + 1) * 65_536).collect();
    let mut gathered = vec![0; 6 * 65_536];
    memory.read_ranges(&blocks, &mut gathered).unwrap();
    for (block, gathered) in blocks.iter().zip(gathered.chunks(65_536)) {
        let from = usize::try_from(block.start).unwrap();
        assert!(gathered == &content[from..from + 65_536], "{block:?}");
    }
    let ranges: Vec<_> = slots.iter().map(|slot| slot * 65_536 + 3..(slot + 1) * 65_536 - 5).collect();
    memory.zero(&ranges).unwrap();
    let mut expected = content.clone();
    for range in ranges {
        expected[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].fill(0);
    }
    let mut all = vec![1; 4 << 20];
    memory.read_at(0, &mut all).unwrap();
    assert!(all == expected);
    memory.write_ranges(&blocks, &gathered).unwrap();
    memory.read_at(0, &mut all).unwrap();
    assert!(all == content, "gathered and scattered is as before");
    // Odd ranges too, more of them than the scratch had room for, and some without bytes.
    let odd: Vec<_> = (0..5000).map(|at| at * 700 + at % 13..at * 700 + at % 13 + at % 600).collect();
    let total: u64 = odd.iter().map(|range| range.end - range.start).sum();
    let mut gathered = vec![0; usize::try_from(total).unwrap()];
    memory.read_ranges(&odd, &mut gathered).unwrap();
    let one_by_one = |range: &std::ops::Range<u64>| {
        content[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
    };
    assert!(gathered == odd.iter().flat_map(one_by_one).collect::<Vec<_>>());
    let error = memory.read_ranges(&odd, &mut gathered[1..]).unwrap_err();
    assert_eq!(error.to_string(), format!("the ranges have {total} bytes, the host's side {}", total - 1));
    assert!(memory.write_ranges(&[0..4, (4 << 20) - 1..(4 << 20) + 1], &[0; 6]).is_err());
    memory.zero(&[]).unwrap();
    memory.write_ranges(&[], &[]).unwrap();
}

#[test]
fn what_a_nic_wrote_is_flushed_before_it_is_looked_at() {
    let rig = Rig::take();
    let Some(before) = rig.count(Count::Flushes) else { return };
    let memory = DeviceMemory::new(&rig.gpu, 4096).unwrap();
    let page = Page { offset: 0, block_len: 4096, stride: 4096, blocks: 1 };
    let _digests = (memory.digests(&[page]).unwrap(), memory.chunk_digests(&[page]).unwrap());
    memory.read_at(0, &mut [0; 8]).unwrap();
    assert_eq!(rig.count(Count::Flushes), Some(before + 3));
}

#[test]
fn the_time_of_digests_is_that_of_their_kernels() {
    let rig = Rig::take();
    let memory = DeviceMemory::new(&rig.gpu, 4 << 20).unwrap();
    let pages: Vec<Page> =
        (0..64).map(|slot| Page { offset: slot * 65_536, block_len: 32_768, stride: 32_768, blocks: 2 }).collect();
    let launches = rig.count(Count::Launches);
    assert!(!memory.time_digests(&pages).unwrap().is_zero());
    assert_eq!(rig.count(Count::Launches), launches.map(|launches| launches + 2));
    assert!(memory.time_digests(&[Page { offset: 4 << 20, block_len: 1, stride: 1, blocks: 1 }]).is_err());
    if rig.host.is_some() {
        assert_eq!(rig.gpu.memory_bandwidth().unwrap(), Some(2_619_000_000 * 2 * 640), "as an H100 says it");
    }
}

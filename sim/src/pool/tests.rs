//! Tests of the block pool, against a simple model.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn keys(range: std::ops::Range<u128>) -> Vec<BlockKey> {
    range.map(BlockKey).collect()
}

fn ids(ids: &[u32]) -> Vec<BlockId> {
    ids.iter().copied().map(BlockId).collect()
}

#[test]
fn freed_blocks_are_reused_last_of_all() {
    let mut pool = BlockPool::new(5, true);
    let first = pool.allocate(&[], 2).unwrap();
    assert_eq!(first.blocks, ids(&[1, 2]));
    pool.release(&first.blocks);
    assert_eq!(pool.allocate(&[], 4).unwrap().blocks, ids(&[3, 4, 2, 1]));
    assert_eq!(pool.allocate(&[], 1), None);
}

#[test]
fn a_known_prefix_is_shared_until_its_blocks_come_up_for_reuse() {
    let mut pool = BlockPool::new(5, true);
    let first = pool.allocate(&keys(0..2), 3).unwrap();
    assert_eq!(first.cached, 0);
    pool.remember(&first.blocks, &keys(0..2));
    let second = pool.allocate(&keys(0..2), 3).unwrap();
    assert_eq!((second.cached, &second.blocks[..2]), (2, &first.blocks[..2]));
    pool.release(&first.blocks);
    pool.release(&second.blocks);
    assert_eq!(pool.used_blocks(), 0);
    let other = pool.allocate(&keys(7..8), 4).unwrap();
    pool.release(&other.blocks);
    assert_eq!(pool.allocate(&keys(0..2), 3).unwrap().cached, 0, "every block was reused");
}

#[test]
fn without_prefix_caching_nothing_is_shared() {
    let mut pool = BlockPool::new(9, false);
    let first = pool.allocate(&keys(0..2), 2).unwrap();
    pool.remember(&first.blocks, &keys(0..2));
    assert_eq!(pool.allocate(&keys(0..2), 2).unwrap().cached, 0);
}

proptest! {
    #[test]
    fn blocks_are_held_or_free_and_shared_only_by_equal_prefixes(
        steps in prop::collection::vec((0u128..6, 1usize..5, any::<bool>()), 1..60),
    ) {
        let mut pool = BlockPool::new(12, true);
        let mut held: Vec<(Vec<BlockId>, Vec<BlockKey>)> = Vec::new();
        for (prefix, total, free_one) in steps {
            if free_one && !held.is_empty() {
                let (blocks, _) = held.remove(0);
                pool.release(&blocks);
            } else {
                let keys: Vec<BlockKey> = (0..total as u128 - 1).map(|i| BlockKey(prefix * 100 + i)).collect();
                if let Some(got) = pool.allocate(&keys, total) {
                    prop_assert_eq!(got.blocks.len(), total);
                    for (other, other_keys) in &held {
                        for (place, id) in got.blocks.iter().enumerate() {
                            if let Some(at) = other.iter().position(|held| held == id) {
                                prop_assert!(place < got.cached && keys.get(place) == other_keys.get(at));
                            }
                        }
                    }
                    pool.remember(&got.blocks, &keys);
                    held.push((got.blocks, keys));
                }
            }
            let in_use: BTreeSet<BlockId> = held.iter().flat_map(|(blocks, _)| blocks.iter().copied()).collect();
            prop_assert_eq!(pool.used_blocks(), in_use.len());
            prop_assert_eq!(pool.free_blocks() + pool.used_blocks(), 11);
        }
    }
}

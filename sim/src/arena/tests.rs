//! Tests of the arena: contents, and how fast they are made and digested.

use std::time::Duration;

use cuda_host::driver::HostDriver;
use nixl::AgentName;
use nixl::loopback::LoopbackNet;

use super::*;
use crate::kv_bytes::block_keys;

async fn arena(geometry: Geometry) -> Arena {
    arena_on(geometry, None).await
}

async fn arena_on(geometry: Geometry, gpu: Option<&Gpu>) -> Arena {
    let net = LoopbackNet::new();
    let mut shards = Vec::new();
    for shard in 0..geometry.tensor_parallel {
        let fabric: Arc<dyn Fabric> = net.agent(AgentName::new(format!("shard-{shard}")).unwrap());
        let region = fabric.register(Arena::memory(&geometry, gpu).unwrap()).await.unwrap();
        shards.push(Shard { fabric, region });
    }
    Arena::new(geometry, shards)
}

fn small(tensor_parallel: u16) -> Geometry {
    let geometry = Geometry {
        layers: 2,
        kv_heads: 2,
        head_size: 4,
        dtype_bytes: 2,
        block_tokens: 4,
        num_blocks: 8,
        tensor_parallel,
    };
    geometry.checked().unwrap()
}

fn pages(tokens: &[u32], blocks: &[u32]) -> Vec<Page> {
    let keys = block_keys(1, tokens, 4);
    let place = |((position, key), block): ((u32, BlockKey), &u32)| Page { block: BlockId(*block), position, key };
    (0..).zip(keys).zip(blocks).map(place).collect()
}

#[tokio::test]
async fn the_digest_is_the_same_wherever_the_blocks_lie_and_another_when_a_byte_differs() {
    let arena = arena(small(2)).await;
    let here = pages(&[1, 2, 3, 4, 5], &[1, 2]);
    let there = pages(&[1, 2, 3, 4, 5], &[7, 4]);
    arena.fill(&here).unwrap();
    arena.fill(&there).unwrap();
    let digest = arena.digest(&here).unwrap();
    assert_eq!(arena.digest(&there).unwrap(), digest);
    assert_eq!(digest.foreign_bytes, 0);

    let last_page = arena.geometry().offset(1, BlockId(2)) + arena.geometry().page_bytes() - 1;
    arena.shards()[1].region.write_at(last_page, &[0]).unwrap();
    assert_ne!(arena.digest(&here).unwrap().value, digest.value, "the last byte of the last shard counts");

    arena.overwrite(&[BlockId(4)], 0).unwrap();
    let zeroed = arena.digest(&there).unwrap();
    assert_ne!(zeroed.value, digest.value);
    assert_eq!(zeroed.foreign_bytes, 4 * arena.geometry().page_bytes(), "2 layers in 2 shards");
}

#[tokio::test]
async fn a_cache_on_a_gpu_has_the_same_digest() {
    let host = HostDriver::unless_gpu();
    if let Some(host) = host {
        host.unguard(1).unwrap();
    }
    let gpu = Gpu::open(0).unwrap();
    let (here, there) = (arena(small(2)).await, arena_on(small(2), Some(&gpu)).await);
    let pages = pages(&[1, 2, 3, 4, 5], &[1, 2]);
    here.fill(&pages).unwrap();
    there.fill(&pages).unwrap();
    assert_eq!(there.digest(&pages).unwrap(), here.digest(&pages).unwrap());
    there.overwrite(&[BlockId(2)], 0).unwrap();
    assert_ne!(there.digest(&pages).unwrap().value, here.digest(&pages).unwrap().value);
    assert_eq!((here.work(1), there.work(1)), (2 * 2 * here.geometry().page_bytes(), u64::MAX));
}

#[tokio::test]
async fn a_block_outside_the_arena_is_an_error() {
    let arena = arena(small(1)).await;
    assert!(arena.fill(&pages(&[1], &[8 + 8])).is_err());
}

#[tokio::test]
async fn kv_is_made_and_digested_fast() {
    let geometry = Geometry {
        layers: 32,
        kv_heads: 8,
        head_size: 128,
        dtype_bytes: 2,
        block_tokens: 16,
        num_blocks: 65,
        tensor_parallel: 1,
    };
    let arena = arena(geometry).await;
    let keys = block_keys(1, &vec![3; 64 * 16], 16);
    let pages: Vec<Page> =
        (0..).zip(keys).map(|(position, key)| Page { block: BlockId(position + 1), position, key }).collect();
    arena.fill(&pages).unwrap();
    let bytes = geometry.token_bytes() * 64 * 16;
    let best =
        |work: &dyn Fn()| (0..5).map(|_| timed(work)).min().unwrap_or_default().max(Duration::from_nanos(1)).as_nanos();
    let fill = u128::from(bytes) * 1000 / best(&|| arena.fill(&pages).unwrap());
    let digest = u128::from(bytes) * 1000 / best(&|| assert_eq!(arena.digest(&pages).unwrap().foreign_bytes, 0));
    println!("fill {fill} MB/s, digest {digest} MB/s");
    // 2 to 3 GB/s on two busy cores; the floor is far below, since other builds may run beside the tests.
    assert!(fill >= 300 && digest >= 300, "fill {fill} MB/s, digest {digest} MB/s");
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn timed(work: &dyn Fn()) -> Duration {
    let start = std::time::Instant::now();
    work();
    start.elapsed()
}

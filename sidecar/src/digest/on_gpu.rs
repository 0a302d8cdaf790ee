//! Digests of pages that lie in a GPU's memory, by that GPU: one launch for all of them.
//!
//! Heavy: for worker threads only.

use cuda::{CudaError, DeviceMemory};
use kv::digest::{Page, PageDigest};
use kv::layout::KvLayout;

use super::pieces::Piece;

/// As [`super::hash::digest_pages`].
///
/// # Errors
/// For a page that is not in the memory, or when the driver refuses.
pub(super) fn digest_pages(
    memory: &DeviceMemory,
    layout: &KvLayout,
    pages: &[Page],
) -> Result<(Vec<u64>, u64), CudaError> {
    let pages: Vec<cuda::Page> = pages.iter().map(|page| in_memory(memory, layout, *page)).collect();
    let bytes = pages.iter().map(|page| page.block_len.saturating_mul(page.blocks)).fold(0, u64::saturating_add);
    Ok((memory.digests(&pages)?, bytes))
}

/// A page as the kernels take it. Of a region that the layout does not have it is nothing.
fn in_memory(memory: &DeviceMemory, layout: &KvLayout, page: Page) -> cuda::Page {
    let Some(region) = layout.regions.get(page.region) else {
        return cuda::Page { offset: 0, block_len: 1, stride: 1, blocks: 0 };
    };
    let blocks = u64::from(layout.kernel_per_logical);
    let into = u64::from(page.block.0).saturating_mul(blocks).saturating_mul(region.block_stride);
    let offset = region.base.saturating_add(into).wrapping_sub(memory.base());
    cuda::Page { offset, block_len: region.block_len, stride: region.block_stride, blocks }
}

/// Digests what a read has brought; those of its pages that it ends go into `digests`. A page that it does not end goes on in `growing`, and
/// has filled its half to the end, which is a chunk's border ([`super::pieces`]).
///
/// # Errors
/// When the driver refuses.
pub(super) fn take(
    memory: &DeviceMemory,
    piece: &Piece,
    growing: &mut PageDigest,
    digests: &mut [u64],
) -> Result<(), CudaError> {
    let mut runs: Vec<(cuda::Page, Option<usize>)> = Vec::new();
    let mut open = false;
    for part in &piece.parts {
        match runs.last_mut() {
            // What lies between a page's kernel blocks was not read: in the half they lie side by side.
            Some((run, ends)) if open => {
                run.block_len = run.block_len.saturating_add(part.len);
                run.stride = run.block_len;
                *ends = part.ends;
            }
            Some(_) | None => {
                runs.push((
                    cuda::Page { offset: part.offset, block_len: part.len, stride: part.len, blocks: 1 },
                    part.ends,
                ));
            }
        }
        open = part.ends.is_none();
    }
    let pages: Vec<cuda::Page> = runs.iter().map(|(page, _)| *page).collect();
    let mut chunks = memory.chunk_digests(&pages)?.into_iter();
    for (run, ends) in runs {
        let count = usize::try_from(run.block_len.div_ceil(cuda::list::CHUNK)).unwrap_or(usize::MAX);
        chunks.by_ref().take(count).for_each(|chunk| growing.whole_chunk(chunk));
        if let Some(digest) = ends.and_then(|page| digests.get_mut(page)) {
            *digest = growing.end();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cuda::Gpu;
    use cuda_host::driver::HostDriver;
    use kv::ids::BlockId;
    use kv::layout::{MemoryKind, RegionGroup, RegionLayout};
    use nixl::{HugePages, Memory};

    use super::super::hash::{self, Growing};
    use super::super::pieces::pieces;
    use super::*;

    fn gpu() -> Gpu {
        let _host = HostDriver::unless_gpu();
        Gpu::open(0).unwrap()
    }

    fn layout(base: u64, (block_len, stride, kernel): (u64, u64, u32), blocks: u32) -> KvLayout {
        let region = |index: u64| RegionLayout {
            name: String::new(),
            base: base + index * stride * u64::from(kernel * blocks),
            block_len,
            block_stride: stride,
            num_blocks: kernel * blocks,
            group: RegionGroup::Shared,
        };
        KvLayout {
            regions: vec![region(0), region(1)],
            kernel_per_logical: kernel,
            kernel_block_tokens: 16,
            layout: "LBHNC".to_owned(),
            backend: "X".to_owned(),
            memory: MemoryKind::Vram,
            device: 0,
        }
    }

    /// (block_len, stride, kernel blocks): without gaps, with gaps, pages of odd sizes, pages of many chunks.
    const SHAPES: [(u64, u64, u32); 6] =
        [(64, 64, 2), (64, 96, 2), (1000, 1003, 3), (4096, 4096, 1), (32_768, 32_768, 2), (5000, 8192, 7)];

    fn content(len: u64) -> Vec<u8> {
        (0..len).map(|at| u8::try_from((at * 131 + at / 251) % 256).unwrap()).collect()
    }

    #[test]
    fn the_gpu_s_digests_are_the_host_s() {
        let gpu = gpu();
        for shape in SHAPES {
            let len = 2 * shape.1 * u64::from(shape.2) * 9;
            let (host, device) = (Memory::host(len, HugePages::Off).unwrap(), Memory::device(len, &gpu).unwrap());
            let bytes = content(len);
            host.write_at(0, &bytes).unwrap();
            device.write_at(0, &bytes).unwrap();
            let of = |memory: &Memory| {
                let layout = layout(memory.base(), shape, 9);
                let pages = kv::digest::pages(&layout, &[[8, 0, 3, 4].map(BlockId).to_vec()]);
                hash::digest_pages(memory, &layout, &pages).unwrap()
            };
            assert_eq!(of(&device), of(&host), "{shape:?}");
        }
        let device = Memory::device(4096, &gpu).unwrap();
        let outside = layout(device.base(), (64, 64, 2), 1000);
        let pages = kv::digest::pages(&outside, &[vec![BlockId(999)]]);
        assert!(hash::digest_pages(&device, &outside, &pages).is_err());
        let no_region = [Page { region: 7, block: BlockId(0) }];
        assert_eq!(
            hash::digest_pages(&device, &outside, &no_region).unwrap(),
            hash::digest_pages(&Memory::host(64, HugePages::Off).unwrap(), &outside, &no_region).unwrap()
        );
    }

    #[test]
    fn pieces_of_pages_are_digested_on_the_gpu_as_on_the_host() {
        let gpu = gpu();
        for shape in SHAPES {
            // Halves that hold many pages, and some that hold no whole one.
            for half in [4096, 8192, 65_536, 1 << 20] {
                let layout = layout(0, shape, 9);
                let engine = content(2 * shape.1 * u64::from(shape.2) * 9);
                let pages = kv::digest::pages(&layout, &[[8, 0, 3, 4].map(BlockId).to_vec()]);
                let (host, device) =
                    (Memory::host(2 * half, HugePages::Off).unwrap(), Memory::device(2 * half, &gpu).unwrap());
                let (mut growing, mut page) = (Growing::new(), PageDigest::new());
                let (mut by_host, mut by_gpu) = (vec![0; pages.len()], vec![0; pages.len()]);
                for piece in pieces(&layout, &pages, half) {
                    for (local, remote) in piece.local.iter().zip(&piece.remote) {
                        let from = usize::try_from(remote.0).unwrap();
                        let bytes = &engine[from..from + usize::try_from(remote.1).unwrap()];
                        host.write_at(local.0, bytes).unwrap();
                        device.write_at(local.0, bytes).unwrap();
                    }
                    for part in &piece.parts {
                        growing.take(&host, part.offset, part.len).unwrap();
                        if let Some(page) = part.ends {
                            by_host[page] = growing.end();
                        }
                    }
                    take(device.on_gpu().unwrap(), &piece, &mut page, &mut by_gpu).unwrap();
                }
                assert_eq!(by_gpu, by_host, "{shape:?} by {half}");
            }
        }
    }
}

//! The kernels over pages of a KV cache: digests and zeroes.

use anyhow::{Result, ensure};
use cuda::{DeviceMemory, Gpu, Page};
use kv::digest::PageDigest;

use crate::report::{Goal, Report};
use crate::timing::{gb_per_s, in_turn, timed};

/// Bytes of a page: a block of 16 tokens in one layer of Llama 3.1 8B.
pub(crate) const PAGE: u64 = 64 << 10;
/// Pages that the host digests too.
const COMPARED: usize = 256;

pub(crate) fn measure(gpu: &Gpu, bytes: u64, rounds: u32, report: &mut Report) -> Result<()> {
    let memory = DeviceMemory::new(gpu, bytes)?;
    let content: Vec<u8> = (0..PAGE).map(|at| u8::try_from((at * 131 + at / 251) % 256).unwrap_or(0)).collect();
    let pages: Vec<Page> = (0..bytes / PAGE)
        .map(|page| Page { offset: page * PAGE, block_len: PAGE / 2, stride: PAGE / 2, blocks: 2 })
        .collect();
    for page in pages.iter().take(COMPARED) {
        memory.write_at(page.offset, &content)?;
        memory.write_at(page.offset, &page.offset.to_le_bytes())?;
    }
    let digests = memory.digests(&pages)?;
    let mut page = vec![0; content.len()];
    for (number, of_gpu) in digests.iter().enumerate().take(COMPARED) {
        memory.read_at(u64::try_from(number)? * PAGE, &mut page)?;
        let mut of_host = PageDigest::new();
        of_host.update(&page);
        ensure!(of_host.end() == *of_gpu, "the GPU's digest of page {number} is not the host's");
    }
    report.note(format!("digests of {} pages are those of the host", digests.len().min(COMPARED)));

    let other = DeviceMemory::new(gpu, bytes)?;
    let ranges: Vec<_> = pages.iter().map(|page| page.offset..page.offset + PAGE).collect();
    let [copy, kernels, whole, zero] = in_turn(
        rounds,
        [
            &mut || timed(|| other.copy_from(0, &memory, 0, bytes)),
            &mut || Ok(memory.time_digests(&pages)?),
            &mut || timed(|| memory.digests(&pages).map(drop)),
            &mut || timed(|| other.zero(&ranges)),
        ],
    )?;
    // A copy reads and writes.
    let moved = 2.0 * gb_per_s(bytes, copy);
    let bandwidth = report.bandwidth_or(moved);
    report.row("copy, GB/s read and written", moved, bandwidth, None);
    report.row(
        "digest, kernels alone",
        gb_per_s(bytes, kernels),
        bandwidth,
        Some(Goal("of the memory's bandwidth", 0.5)),
    );
    report.row("digest, as the sidecar calls it", gb_per_s(bytes, whole), bandwidth, None);
    report.row("zero", gb_per_s(bytes, zero), bandwidth, None);
    Ok(())
}

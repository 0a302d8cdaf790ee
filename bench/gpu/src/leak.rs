//! Many small reads, and what is left of them.

use anyhow::{Context as _, Result};

use crate::digest::PAGE;
use crate::read::Reader;
use crate::report::Report;

/// Descriptors of each read.
const BLOCKS: u64 = 16;
/// Reads before memory is looked at: caches and pools are filled by then.
const WARM: u32 = 500;
/// What may differ all the same: an allocator's moods.
const SLACK: u64 = 8 << 20;

pub(crate) fn measure(reader: &mut Reader, reads: u32, report: &mut Report) -> Result<()> {
    let some: Vec<(u64, u64)> = (0..BLOCKS).map(|block| (2 * block * PAGE, PAGE)).collect();
    let many = |count: u32| (0..count).try_for_each(|_| reader.read(&some).map(drop));
    many(WARM)?;
    let before = (reader.gpu.memory()?.free, resident()?);
    many(reads)?;
    let after = (reader.gpu.memory()?.free, resident()?);
    let (device, host) = (before.0.saturating_sub(after.0), after.1.saturating_sub(before.1));
    report.check(
        format!("{reads} reads leave {device} bytes less free on the GPU, {host} more resident in the process"),
        device <= SLACK && host <= SLACK,
    );
    Ok(())
}

/// Resident bytes of this process.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

//! The staging arenas of one rank: one per TP shard, all with the same number of slots, each region-major like the engine's own cache.

use std::sync::Arc;

use kv::copy::staging_layout;
use kv::ids::SlotId;
use kv::layout::{KvLayout, MemoryKind};
use nixl::{AccessError, HugePages, Memory, MemoryError, bulk};

/// What stays free on the host, whatever `--staging-bytes` says.
const HOST_RESERVE: u64 = 1 << 30;

/// Why a rank has no staging.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StagingError {
    /// Not one block fits.
    #[error("{bytes} bytes of staging hold no block: one takes {slot_bytes} bytes over all TP shards")]
    TooSmall {
        /// Configured.
        bytes: u64,
        /// Of one slot.
        slot_bytes: u64,
    },
    /// The host has not got it.
    #[error(
        "staging of {bytes} bytes would leave less than {HOST_RESERVE} of the {available} bytes that the host has left"
    )]
    HostMemory {
        /// Needed.
        bytes: u64,
        /// What the kernel says is available.
        available: u64,
    },
    /// No mapping.
    #[error("map {bytes} bytes of staging")]
    Map {
        /// Of one shard.
        bytes: u64,
        /// Why.
        #[source]
        source: MemoryError,
    },
}

/// How many slots `bytes` hold when each takes its share in every shard's arena.
///
/// # Errors
/// [`StagingError::TooSmall`].
pub(crate) fn slots_in(bytes: u64, shards: &[Arc<KvLayout>]) -> Result<u32, StagingError> {
    let slot_bytes: u64 = shards.iter().map(|layout| layout.slot_bytes()).sum();
    let most_kernel_blocks = shards.iter().map(|layout| u64::from(u32::MAX / layout.kernel_per_logical)).min();
    let slots = bytes.checked_div(slot_bytes).unwrap_or(0).min(most_kernel_blocks.unwrap_or(0));
    match u32::try_from(slots) {
        Ok(slots) if slots > 0 => Ok(slots),
        Ok(_) | Err(_) => Err(StagingError::TooSmall { bytes, slot_bytes }),
    }
}

/// Refuses an arena that would take the host's last memory. Where the kernel does not say what it has, there is no check.
///
/// # Errors
/// [`StagingError::HostMemory`].
pub(crate) fn check_host(bytes: u64) -> Result<(), StagingError> {
    match too_little(bytes) {
        Some(available) => Err(StagingError::HostMemory { bytes, available }),
        None => Ok(()),
    }
}

/// What the host has, when `bytes` more would take its last memory.
pub(crate) fn too_little(bytes: u64) -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    available(&meminfo).filter(|available| *available < bytes.saturating_add(HOST_RESERVE))
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// One shard's arena.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    /// The memory; agents register it.
    pub memory: Memory,
    /// Where slot `s` of region `r` lies, as the virtual engine advertises it.
    pub layout: Arc<KvLayout>,
}

impl Arena {
    /// Maps an arena of `slots` slots with the geometry of `engine`.
    ///
    /// # Errors
    /// [`StagingError::Map`].
    pub(crate) fn map(engine: &KvLayout, slots: u32) -> Result<Self, StagingError> {
        let bytes = engine.slot_bytes().saturating_mul(u64::from(slots));
        let memory = Memory::host(bytes, HugePages::Try).map_err(|source| StagingError::Map { bytes, source })?;
        let mut layout = staging_layout(engine, memory.base(), slots);
        layout.memory = MemoryKind::Dram;
        layout.device = 0;
        Ok(Self { memory, layout: Arc::new(layout) })
    }

    /// Takes its pages, off the async threads.
    pub(crate) async fn touch(&self) {
        let memory = self.memory.clone();
        let touched = bulk::over(memory.len(), move || memory.touch()).await;
        if !matches!(touched, Ok(true)) {
            tracing::debug!(bytes = self.memory.len(), "staging's pages come with the first reads into them");
        }
    }

    /// The byte ranges `(offset, length)` of one slot, one per region.
    pub(crate) fn ranges(&self, slot: SlotId) -> impl Iterator<Item = (u64, u64)> {
        let kernel = u64::from(self.layout.kernel_per_logical);
        let base = self.memory.base();
        self.layout.regions.iter().map(move |region| {
            let len = region.block_stride.saturating_mul(kernel);
            (region.base.saturating_sub(base).saturating_add(u64::from(slot.0).saturating_mul(len)), len)
        })
    }

    /// Zeroes slots.
    ///
    /// # Errors
    /// [`AccessError`] for a slot that the arena does not have.
    pub(crate) fn zero(&self, slots: &[SlotId]) -> Result<(), AccessError> {
        for slot in slots {
            for (offset, len) in self.ranges(*slot) {
                self.memory.fill(offset..offset.saturating_add(len), 0)?;
            }
        }
        Ok(())
    }

    /// Flips every byte of the slots (fault injection).
    ///
    /// # Errors
    /// [`AccessError`] for a slot that the arena does not have.
    pub(crate) fn flip(&self, slots: &[SlotId]) -> Result<(), AccessError> {
        let mut buffer = vec![0; 1 << 16];
        for slot in slots {
            for (offset, len) in self.ranges(*slot) {
                let mut at = offset;
                let end = offset.saturating_add(len);
                while at < end {
                    let piece = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
                    let Some(bytes) = buffer.get_mut(..piece) else { break };
                    self.memory.read_at(at, bytes)?;
                    bytes.iter_mut().for_each(|byte| *byte ^= 0xff);
                    self.memory.write_at(at, bytes)?;
                    at = at.saturating_add(u64::try_from(piece).unwrap_or(u64::MAX));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv::layout::{RegionGroup, RegionLayout};

    fn layout() -> KvLayout {
        let region = |name: &str| RegionLayout {
            name: name.to_owned(),
            base: 0x5000,
            block_len: 64,
            block_stride: 96,
            num_blocks: 8,
            group: RegionGroup::One(0),
        };
        KvLayout {
            regions: vec![region("a"), region("b")],
            kernel_per_logical: 2,
            kernel_block_tokens: 16,
            layout: "LBHNC".to_owned(),
            backend: "CPU_ATTN".to_owned(),
            memory: MemoryKind::Vram,
            device: 3,
        }
    }

    #[test]
    fn slots_are_counted_over_all_shards() {
        let shard = Arc::new(layout());
        assert_eq!(slots_in(384 * 10, std::slice::from_ref(&shard)).unwrap(), 10);
        assert_eq!(slots_in(384 * 10, &[Arc::clone(&shard), shard]).unwrap(), 5);
        let error = slots_in(383, &[Arc::new(layout())]).unwrap_err();
        assert_eq!(error.to_string(), "383 bytes of staging hold no block: one takes 384 bytes over all TP shards");
    }

    #[test]
    fn a_slot_is_one_range_per_region_and_zeroing_touches_nothing_else() {
        let arena = Arena::map(&layout(), 3).unwrap();
        assert_eq!(arena.memory.len(), 384 * 3);
        assert_eq!(arena.ranges(SlotId(1)).collect::<Vec<_>>(), [(192, 192), (192 * 3 + 192, 192)]);
        assert_eq!((arena.layout.memory, arena.layout.device), (MemoryKind::Dram, 0));
        arena.flip(&[SlotId(0), SlotId(1), SlotId(2)]).unwrap();
        arena.zero(&[SlotId(1)]).unwrap();
        let mut bytes = vec![7; 384 * 3];
        arena.memory.read_at(0, &mut bytes).unwrap();
        let zeroed: Vec<usize> = bytes.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at).collect();
        assert_eq!(zeroed, (192..384).chain(768..960).collect::<Vec<_>>());
        assert!(arena.zero(&[SlotId(3)]).is_err());
    }

    #[test]
    fn the_kernel_s_word_is_read_in_kib() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available("nothing"), None);
    }
}

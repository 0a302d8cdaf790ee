//! The staging arenas of one rank: one per TP shard, all with the same number of slots, each region-major like the engine's own cache.
//!
//! In host memory, page-locked or not, or in a GPU's, where what is done with whole slots is done by the GPU.

use std::ops::Range;
use std::sync::Arc;

use cuda::{CudaError, Gpu};

use kv::copy::staging_layout;
use kv::ids::SlotId;
use kv::layout::{KvLayout, MemoryKind};
use nixl::{AccessError, HugePages, MemKind, Memory, MemoryError, bulk};
use vllm_wire::versions::Version;

use crate::model::StagingKind;

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
    #[error("map {bytes} bytes of staging: {source}")]
    Map {
        /// Of one shard.
        bytes: u64,
        /// Why.
        source: MemoryError,
    },
    /// No room on the GPU.
    #[error(
        "staging of {bytes} bytes: {source}: give less with --staging-bytes, or leave more beside the engine (vLLM: --gpu-memory-utilization)"
    )]
    GpuMemory {
        /// Of one shard.
        bytes: u64,
        /// Why.
        source: CudaError,
    },
    /// No such GPU.
    #[error("open the GPU for staging: {0}")]
    Gpu(#[from] CudaError),
    /// The thread that made it has ended.
    #[error("make staging: the thread that did so has ended")]
    Thread,
    /// An engine that could not read it.
    #[error(
        "--staging vram is for engines with their KV cache on a GPU; this one's is in host memory: use --staging dram"
    )]
    EngineOnHost,
    /// An engine that would take it for its own kind of memory.
    #[error(
        "vLLM {release} reads a peer's blocks as GPU memory whatever the peer says: use --staging vram, or a release that reads what is declared"
    )]
    EngineOnGpu {
        /// Its release.
        release: &'static str,
    },
}

/// Where an arena lies.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Host memory.
    Host,
    /// Host memory, page-locked for this GPU.
    Pinned(Gpu),
    /// This GPU's memory.
    Device(Gpu),
}

impl Place {
    /// Memory there.
    ///
    /// # Errors
    /// [`StagingError`].
    pub(crate) async fn memory(self, bytes: u64) -> Result<Memory, StagingError> {
        let made = match self {
            Self::Host => Memory::host(bytes, HugePages::Try),
            // All of it is touched.
            Self::Pinned(gpu) => apart(move || Memory::pinned(bytes, HugePages::Try, &gpu)).await?,
            Self::Device(gpu) => apart(move || Memory::device(bytes, &gpu)).await?,
        };
        made.map_err(|source| match source {
            MemoryError::Gpu(source @ CudaError::OutOfMemory { .. }) => StagingError::GpuMemory { bytes, source },
            source @ (MemoryError::Empty
            | MemoryError::TooLarge { .. }
            | MemoryError::Map { .. }
            | MemoryError::Gpu(_)) => StagingError::Map { bytes, source },
        })
    }

    /// The GPU whose memory it is.
    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Host | Self::Pinned(_) => None,
            Self::Device(gpu) => Some(gpu),
        }
    }
}

/// Waits for a driver on a thread where that holds up nobody.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StagingError> {
    tokio::task::spawn_blocking(work).await.map_err(|_ended| StagingError::Thread)
}

/// Opens a GPU: its context is made and its kernels are compiled.
///
/// # Errors
/// [`StagingError::Gpu`].
pub(crate) async fn open_gpu(ordinal: u32) -> Result<Gpu, StagingError> {
    Ok(apart(move || Gpu::open(ordinal)).await??)
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

/// Refuses staging that the rank's engine could not read.
///
/// # Errors
/// [`StagingError::EngineOnHost`], [`StagingError::EngineOnGpu`].
pub(crate) fn check_engine(staging: StagingKind, engine: MemoryKind, version: &Version) -> Result<(), StagingError> {
    match (staging, engine) {
        (StagingKind::Vram, MemoryKind::Dram) => Err(StagingError::EngineOnHost),
        (StagingKind::Dram | StagingKind::Pinned, MemoryKind::Vram) if !version.reads_declared_memory => {
            Err(StagingError::EngineOnGpu { release: version.release })
        }
        (StagingKind::Dram | StagingKind::Pinned, MemoryKind::Dram | MemoryKind::Vram)
        | (StagingKind::Vram, MemoryKind::Vram) => Ok(()),
    }
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
    /// Makes an arena of `slots` slots with the geometry of `engine`.
    ///
    /// # Errors
    /// [`StagingError`].
    pub(crate) async fn make(engine: &KvLayout, slots: u32, place: Place) -> Result<Self, StagingError> {
        let memory = place.memory(engine.slot_bytes().saturating_mul(u64::from(slots))).await?;
        let mut layout = staging_layout(engine, memory.base(), slots);
        layout.memory = match memory.kind() {
            MemKind::Dram => MemoryKind::Dram,
            MemKind::Vram => MemoryKind::Vram,
        };
        layout.device = memory.device_id();
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

    /// What work over so many bytes of it counts as (`nixl::bulk`): a GPU's answer is waited for, however little it has to do.
    pub(crate) fn work(&self, bytes: u64) -> u64 {
        if self.memory.on_gpu().is_some() { u64::MAX } else { bytes }
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
        let ranges = slots.iter().flat_map(|slot| self.ranges(*slot));
        let ranges: Vec<Range<u64>> = ranges.map(|(offset, len)| offset..offset.saturating_add(len)).collect();
        self.memory.zero(&ranges)
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
    use cuda_host::driver::HostDriver;
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

    #[tokio::test]
    async fn a_slot_is_one_range_per_region_and_zeroing_touches_nothing_else() {
        let gpus = gpus();
        for (place, memory) in [
            (Place::Host, (MemoryKind::Dram, 0)),
            (Place::Pinned(gpus[0].clone()), (MemoryKind::Dram, 0)),
            (Place::Device(gpus[0].clone()), (MemoryKind::Vram, 0)),
            (Place::Device(gpus[gpus.len() - 1].clone()), (MemoryKind::Vram, gpus.len() as u64 - 1)),
        ] {
            let arena = Arena::make(&layout(), 3, place).await.unwrap();
            assert_eq!((arena.layout.memory, arena.layout.device), memory);
            zeroes_what_it_names(&arena);
        }
    }

    /// Two on the host's driver, one where there is a real one.
    fn gpus() -> Vec<Gpu> {
        if let Some(host) = HostDriver::unless_gpu() {
            host.unguard(2).unwrap();
        }
        (0..cuda::driver().unwrap().devices().min(2)).map(|ordinal| Gpu::open(ordinal).unwrap()).collect()
    }

    fn zeroes_what_it_names(arena: &Arena) {
        assert_eq!(arena.memory.len(), 384 * 3);
        assert_eq!(arena.ranges(SlotId(1)).collect::<Vec<_>>(), [(192, 192), (192 * 3 + 192, 192)]);
        arena.flip(&[SlotId(0), SlotId(1), SlotId(2)]).unwrap();
        arena.zero(&[SlotId(1)]).unwrap();
        let mut bytes = vec![7; 384 * 3];
        arena.memory.read_at(0, &mut bytes).unwrap();
        let zeroed: Vec<usize> = bytes.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at).collect();
        assert_eq!(zeroed, (192..384).chain(768..960).collect::<Vec<_>>());
        assert!(arena.zero(&[SlotId(3)]).is_err());
    }

    #[test]
    fn an_engine_gets_staging_that_it_can_read() {
        use vllm_wire::versions::{SUPPORTED, V0_32_0};
        let kinds = [StagingKind::Dram, StagingKind::Pinned, StagingKind::Vram];
        for version in SUPPORTED {
            assert!(kinds.iter().all(|kind| check_engine(*kind, MemoryKind::Vram, version).is_ok()));
        }
        let deaf = Version { reads_declared_memory: false, release: "0.0.1", ..V0_32_0 };
        for kind in kinds {
            let (on_host, on_gpu) =
                (check_engine(kind, MemoryKind::Dram, &deaf), check_engine(kind, MemoryKind::Vram, &deaf));
            let words =
                |answer: Result<(), StagingError>| answer.err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(words(on_host).contains("use --staging dram"), kind == StagingKind::Vram);
            assert_eq!(words(on_gpu).contains("vLLM 0.0.1"), kind != StagingKind::Vram);
        }
    }

    #[tokio::test]
    async fn a_gpu_without_room_says_what_to_do() {
        let gpus = gpus();
        let slots = u32::try_from(gpus[0].memory().unwrap().total / 384 + 1).unwrap();
        let error = Arena::make(&layout(), slots, Place::Device(gpus[0].clone())).await.unwrap_err().to_string();
        assert!(error.contains("bytes free") && error.contains("--staging-bytes"), "{error}");
    }

    #[test]
    fn the_kernel_s_word_is_read_in_kib() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available("nothing"), None);
    }
}

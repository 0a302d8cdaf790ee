//! Memory that hardware may write: host memory, page-locked or not, and a GPU's.
//!
//! Nobody gets a reference into it: a `&[u8]` over memory that a NIC writes would be undefined behaviour. Bytes are copied
//! in and out.

mod host;

use std::{fmt, io, ops::Range, sync::Arc};

use cuda::{CudaError, DeviceMemory, Gpu};

use crate::{descs::MemKind, region::OutOfRange};
use host::Mapping;

/// Bytes that are copied at a time between memories of two kinds.
const COPY_STEP: usize = 1 << 20;

/// Whether to ask the kernel for huge pages (2.3 times the throughput of a READ, measured, nixl-ffi.md §3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Ordinary pages.
    #[default]
    Off,
    /// Huge pages where the kernel has them, else ordinary ones.
    Try,
}

/// Why memory could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Memory of no bytes cannot be registered.
    #[error("memory must not be empty")]
    Empty,
    /// More than an address can say.
    #[error("{len} bytes are more than this machine can address")]
    TooLarge {
        /// Bytes asked for.
        len: u64,
    },
    /// The kernel refused to map it.
    #[error("map {len} bytes: {}", io::Error::from_raw_os_error(*errno))]
    Map {
        /// Bytes asked for.
        len: u64,
        /// The kernel's error number.
        errno: i32,
    },
    /// The GPU has none, or the driver does not lock the host's.
    #[error(transparent)]
    Gpu(#[from] CudaError),
}

/// Why bytes could not be copied in or out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The range leaves the memory: nothing was copied.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// The GPU, or its driver, refused.
    #[error(transparent)]
    Gpu(#[from] CudaError),
}

/// Zeroed memory of one kind, freed when the last handle is gone. Cloning shares it.
#[derive(Clone)]
pub struct Memory(Backing);

#[derive(Clone)]
enum Backing {
    Host(Arc<Mapping>),
    Device(DeviceMemory),
}

impl Memory {
    /// Maps `len` bytes of page-aligned host memory, which is touched lazily.
    ///
    /// # Errors
    /// When `len` is 0 or too large, or the kernel refuses.
    pub fn host(len: u64, huge_pages: HugePages) -> Result<Self, MemoryError> {
        Ok(Self(Backing::Host(Arc::new(Mapping::new(len, huge_pages)?))))
    }

    /// Maps `len` bytes of host memory that the GPUs of this process copy to and from without a detour. All of it is touched.
    ///
    /// # Errors
    /// As [`host`](Self::host), or when the driver does not lock so much.
    pub fn pinned(len: u64, huge_pages: HugePages, gpu: &Gpu) -> Result<Self, MemoryError> {
        Ok(Self(Backing::Host(Arc::new(Mapping::new(len, huge_pages)?.pinned(gpu)?))))
    }

    /// Allocates `len` bytes on a GPU.
    ///
    /// # Errors
    /// When `len` is 0, or the GPU has less free.
    pub fn device(len: u64, gpu: &Gpu) -> Result<Self, MemoryError> {
        Ok(Self(Backing::Device(DeviceMemory::new(gpu, len)?)))
    }

    /// What NIXL is told that it is.
    #[must_use]
    pub fn kind(&self) -> MemKind {
        match &self.0 {
            Backing::Host(_) => MemKind::Dram,
            Backing::Device(_) => MemKind::Vram,
        }
    }

    /// NIXL's device id: 0 for host memory, else the GPU's number in this process.
    #[must_use]
    pub fn device_id(&self) -> u64 {
        self.on_gpu().map_or(0, |memory| u64::from(memory.gpu().ordinal()))
    }

    /// The same memory, when it is a GPU's, for what only that can do with it.
    #[must_use]
    pub fn on_gpu(&self) -> Option<&DeviceMemory> {
        match &self.0 {
            Backing::Host(_) => None,
            Backing::Device(memory) => Some(memory),
        }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.0 {
            Backing::Host(mapping) => mapping.len(),
            Backing::Device(memory) => memory.len(),
        }
    }

    /// Never: memory of no bytes cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Takes all its pages now: reads into pages that nobody has touched wait for the kernel to clear them. Takes about a second for
    /// ten gigabytes. Answers whether the memory is all there; where the kernel cannot do it (before Linux 5.14), pages come with their
    /// first use.
    #[must_use]
    pub fn touch(&self) -> bool {
        match &self.0 {
            Backing::Host(mapping) => mapping.touch(),
            Backing::Device(_) => true,
        }
    }

    /// Address of byte 0: virtual in this process, or the device's.
    #[must_use]
    pub fn base(&self) -> u64 {
        match &self.0 {
            Backing::Host(mapping) => mapping.base(),
            Backing::Device(memory) => memory.base(),
        }
    }

    /// Whether the kernel took the wish for huge pages (it may still use ordinary ones when it has none free).
    #[must_use]
    pub fn huge_pages(&self) -> bool {
        match &self.0 {
            Backing::Host(mapping) => mapping.huge_pages(),
            Backing::Device(_) => false,
        }
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// When the range leaves the memory, or the GPU refuses.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), AccessError> {
        let at = self.check(offset, out.len() as u64)?;
        match &self.0 {
            Backing::Host(mapping) => mapping.read_at(at, out),
            Backing::Device(memory) => memory.read_at(offset, out)?,
        }
        Ok(())
    }

    /// Copies bytes in, from `offset` on.
    ///
    /// # Errors
    /// When the range leaves the memory, or the GPU refuses.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), AccessError> {
        let at = self.check(offset, bytes.len() as u64)?;
        match &self.0 {
            Backing::Host(mapping) => mapping.write_at(at, bytes),
            Backing::Device(memory) => memory.write_at(offset, bytes)?,
        }
        Ok(())
    }

    /// Sets every byte of `range` to `byte`.
    ///
    /// # Errors
    /// When the range leaves the memory, or the GPU refuses.
    pub fn fill(&self, range: Range<u64>, byte: u8) -> Result<(), AccessError> {
        let len = range.end.saturating_sub(range.start);
        let at = self.check(range.start, len)?;
        match &self.0 {
            Backing::Host(mapping) => mapping.fill(at, usize::try_from(len).unwrap_or(0), byte),
            Backing::Device(memory) => memory.fill(range, byte)?,
        }
        Ok(())
    }

    /// Zeroes ranges; on a GPU all of them in one launch.
    ///
    /// # Errors
    /// When a range leaves the memory, or the GPU refuses.
    pub fn zero(&self, ranges: &[Range<u64>]) -> Result<(), AccessError> {
        match &self.0 {
            Backing::Host(_) => ranges.iter().try_for_each(|range| self.fill(range.clone(), 0)),
            Backing::Device(memory) => Ok(memory.zero(ranges)?),
        }
    }

    /// Copies ranges out, one after the other; on a GPU gathered in one launch.
    ///
    /// # Errors
    /// When a range leaves the memory, or on a GPU when it refuses or `out` is not as long as the ranges.
    pub fn read_ranges(&self, ranges: &[Range<u64>], mut out: &mut [u8]) -> Result<(), AccessError> {
        if let Backing::Device(memory) = &self.0 {
            return Ok(memory.read_ranges(ranges, out)?);
        }
        for range in ranges {
            let part = self.len_of(range)?.min(out.len());
            let (now, later) = out.split_at_mut(part);
            self.read_at(range.start, now)?;
            out = later;
        }
        Ok(())
    }

    /// Copies bytes into ranges, one after the other; on a GPU scattered in one launch.
    ///
    /// # Errors
    /// As [`read_ranges`](Self::read_ranges).
    pub fn write_ranges(&self, ranges: &[Range<u64>], mut bytes: &[u8]) -> Result<(), AccessError> {
        if let Backing::Device(memory) = &self.0 {
            return Ok(memory.write_ranges(ranges, bytes)?);
        }
        for range in ranges {
            let part = self.len_of(range)?.min(bytes.len());
            let (now, later) = bytes.split_at(part);
            self.write_at(range.start, now)?;
            bytes = later;
        }
        Ok(())
    }

    fn len_of(&self, range: &Range<u64>) -> Result<usize, OutOfRange> {
        let len = range.end.saturating_sub(range.start);
        self.check(range.start, len)?;
        usize::try_from(len).map_err(|_| OutOfRange { offset: range.start, len, size: self.len() })
    }

    /// Copies from another memory, or another part of this one, by way of a small buffer: the two locks are never held at
    /// once, so copies in opposite directions cannot block one another.
    pub(crate) fn copy_from(&self, to: u64, source: &Self, from: u64, len: u64) -> Result<(), AccessError> {
        self.check(to, len)?;
        source.check(from, len)?;
        let size = usize::try_from(len).unwrap_or(COPY_STEP).min(COPY_STEP);
        let mut buffer = vec![0; size];
        let mut done = 0;
        while done < len {
            let step = usize::try_from(len - done).unwrap_or(size).min(size);
            let part = buffer.get_mut(..step).unwrap_or_default();
            source.read_at(from + done, part)?;
            self.write_at(to + done, part)?;
            done += step as u64;
        }
        Ok(())
    }

    pub(crate) fn check(&self, offset: u64, len: u64) -> Result<usize, OutOfRange> {
        let refused = OutOfRange { offset, len, size: self.len() };
        let end = offset.checked_add(len).ok_or(refused)?;
        if end > self.len() {
            return Err(refused);
        }
        usize::try_from(offset).map_err(|_| refused)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, device) = (self.kind(), self.device_id());
        f.debug_struct("Memory")
            .field("kind", &kind)
            .field("device", &device)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use cuda_host::driver::HostDriver;

    use super::*;

    fn each_kind(len: u64) -> Vec<Memory> {
        let _host = HostDriver::unless_gpu();
        let gpu = Gpu::open(0).expect("a driver, of whichever kind");
        let pinned = Memory::pinned(len, HugePages::Try, &gpu).expect("pinned memory");
        vec![
            Memory::host(len, HugePages::Off).expect("host memory"),
            Memory::host(len, HugePages::Try).expect("host memory"),
            pinned,
            Memory::device(len, &gpu).expect("device memory"),
        ]
    }

    #[test]
    fn memory_starts_zeroed_and_keeps_what_is_written() {
        for memory in each_kind(5 << 20) {
            let mut out = [1; 64];
            memory.read_at((5 << 20) - 64, &mut out).expect("inside");
            assert_eq!(out, [0; 64]);
            memory.write_at(4096, b"kv").expect("inside");
            memory.fill(4098..4100, b'!').expect("inside");
            memory.read_at(4096, &mut out[..5]).expect("inside");
            assert_eq!(&out[..5], b"kv!!\0");
            assert_eq!(memory.base() % 4096, 0);
        }
    }

    /// Page faults of this thread so far.
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("a thread's figures");
        let fields = stat.rsplit(')').next().expect("fields after the name");
        fields.split_ascii_whitespace().nth(7).expect("minflt").parse().expect("a number")
    }

    #[test]
    fn what_was_touched_is_written_without_page_faults() {
        let write = |touch: bool| {
            let memory = Memory::host(16 << 20, HugePages::Off).expect("host memory");
            memory.write_at(4096, b"kv").expect("inside");
            assert!(!touch || memory.touch());
            let before = faults();
            (0..memory.len()).step_by(4096).for_each(|page| memory.write_at(page, b"x").expect("inside"));
            let mut out = [0; 3];
            memory.read_at(4096, &mut out).expect("inside");
            assert_eq!(&out, b"xv\0", "what was there stays");
            faults() - before
        };
        let (untouched, touched) = (write(false), write(true));
        assert!(untouched > 4000 && touched < 40, "{untouched} faults, and {touched}");
    }

    #[test]
    fn ranges_that_leave_the_memory_are_refused_and_write_nothing() {
        for memory in each_kind(4096) {
            assert!(memory.write_at(4095, b"xx").is_err());
            assert!(memory.read_at(u64::MAX, &mut [0]).is_err());
            assert!(memory.fill(0..4097, 1).is_err() && memory.zero(&[5..9, 0..4097]).is_err());
            let mut last = [9];
            memory.read_at(4095, &mut last).expect("inside");
            assert_eq!(last, [0], "{memory:?}");
        }
        assert_eq!(Memory::host(0, HugePages::Off).expect_err("empty"), MemoryError::Empty);
        assert!(Memory::host(u64::MAX, HugePages::Try).is_err());
    }

    #[test]
    fn ranges_are_copied_one_after_the_other() {
        for memory in each_kind(1 << 20) {
            let ranges = [70_000..70_003, 5..9, 20..20, 4096..4098];
            memory.write_ranges(&ranges, b"123456789").expect("inside");
            let mut out = [0; 9];
            memory.read_ranges(&ranges, &mut out).expect("inside");
            assert_eq!(&out, b"123456789", "{memory:?}");
            let mut four = [0; 4];
            memory.read_at(5, &mut four).expect("inside");
            assert_eq!(&four, b"4567");
            assert!(memory.read_ranges(&[0..1, (1 << 20) - 1..(1 << 20) + 1], &mut out[..3]).is_err());
        }
    }

    #[test]
    fn copies_may_overlap_in_one_memory_and_cross_steps() {
        for memory in each_kind(4 << 20) {
            for other in each_kind(4 << 20) {
                memory.fill(0..(2 << 20), 7).expect("inside");
                memory.zero(std::slice::from_ref(&((2 << 20)..(4 << 20)))).expect("inside");
                other.copy_from(3, &memory, 1, (2 << 20) + 5).expect("inside");
                let mut end = [0; 8];
                other.read_at((2 << 20) - 1, &mut end).expect("inside");
                assert_eq!(end, [7, 7, 7, 0, 0, 0, 0, 0]);
                memory.copy_from(1 << 20, &memory, 0, 2 << 20).expect("inside");
            }
        }
    }
}

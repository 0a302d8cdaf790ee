//! Page-aligned host memory that hardware may write.
//!
//! Nobody gets a reference into it: a `&[u8]` over memory that a NIC writes would be undefined behaviour. Bytes are copied
//! in and out; copies of this process exclude one another, and hardware is not part of Rust's memory model.
#![allow(unsafe_code, reason = "mmap and raw copies")]

use std::{fmt, io, ops::Range, ptr::NonNull, sync::Arc};

use parking_lot::RwLock;

use crate::region::OutOfRange;

/// Size and alignment of a huge page on the machines that NIXL's wheels are built for.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes copied under one hold of the lock, so that a long copy does not keep others waiting.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
}

/// Zeroed host memory, touched lazily, freed when the last handle is gone. Cloning shares it.
#[derive(Clone)]
pub struct Memory(Arc<Mapping>);

struct Mapping {
    /// What `munmap` gets back.
    map: NonNull<u8>,
    map_len: usize,
    /// The part in use: `len` bytes from here.
    base: NonNull<u8>,
    len: usize,
    huge: bool,
    /// Orders the copies of this process.
    copies: RwLock<()>,
}

// SAFETY: the mapping belongs to this value alone until Drop; its bytes are only reached by `Memory`'s copies, which take
// `copies`, and by hardware.
unsafe impl Send for Mapping {}
// SAFETY: as above: shared access goes through `copies`.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `map` and `map_len` are what mmap gave; agents hold a `Memory` for as long as they know the address, so the
        // last handle is gone here.
        let _result = unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

impl Memory {
    /// Maps `len` bytes of zeroed, page-aligned memory.
    ///
    /// # Errors
    /// When `len` is 0 or too large, or the kernel refuses.
    pub fn host(len: u64, huge_pages: HugePages) -> Result<Self, MemoryError> {
        let too_large = MemoryError::TooLarge { len };
        let size = usize::try_from(len).map_err(|_| too_large)?;
        if size == 0 {
            return Err(MemoryError::Empty);
        }
        // A huge page must start on its own boundary, which mmap does not promise: map one more and align inside.
        let spare = if huge_pages == HugePages::Try { HUGE_PAGE } else { 0 };
        let map_len = size.checked_add(spare).ok_or(too_large)?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let refused = || MemoryError::Map { len, errno: io::Error::last_os_error().raw_os_error().unwrap_or(0) };
        if map == libc::MAP_FAILED {
            return Err(refused());
        }
        let map = NonNull::new(map.cast::<u8>()).ok_or_else(refused)?;
        let offset = if spare == 0 { 0 } else { map.align_offset(HUGE_PAGE).min(spare) };
        // SAFETY: `offset` is at most `spare`, so `base` and `size` bytes after it lie inside the mapping.
        let base = unsafe { map.add(offset) };
        let huge = spare != 0 && advise_huge(base, size);
        Ok(Self(Arc::new(Mapping { map, map_len, base, len: size, huge, copies: RwLock::new(()) })))
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len as u64
    }

    /// Never: memory of no bytes cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Virtual address of byte 0 in this process.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.0.base.as_ptr().addr() as u64
    }

    /// Whether the kernel took the wish for huge pages (it may still use ordinary ones when it has none free).
    #[must_use]
    pub fn huge_pages(&self) -> bool {
        self.0.huge
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// When the range leaves the memory; nothing is copied then.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), OutOfRange> {
        let mut at = self.check(offset, out.len() as u64)?;
        for part in out.chunks_mut(COPY_STEP) {
            let _shared = self.0.copies.read();
            // SAFETY: `check` has shown that `at` and `part.len()` bytes after it lie inside the mapping, which `self` keeps.
            let from = unsafe { self.0.base.add(at) };
            // SAFETY: both sides have `part.len()` bytes; `out` is a Rust slice and so no part of the mapping; writers of this
            // process are shut out by `copies`.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), part.as_mut_ptr(), part.len()) };
            at += part.len();
        }
        Ok(())
    }

    /// Copies bytes in, from `offset` on.
    ///
    /// # Errors
    /// When the range leaves the memory; nothing is copied then.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        let mut at = self.check(offset, bytes.len() as u64)?;
        for part in bytes.chunks(COPY_STEP) {
            let _alone = self.0.copies.write();
            // SAFETY: as in `read_at`.
            let to = unsafe { self.0.base.add(at) };
            // SAFETY: as in `read_at`; readers and writers of this process are shut out by `copies`.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), to.as_ptr(), part.len()) };
            at += part.len();
        }
        Ok(())
    }

    /// Sets every byte of `range` to `byte`.
    ///
    /// # Errors
    /// When the range leaves the memory; nothing is written then.
    pub fn fill(&self, range: Range<u64>, byte: u8) -> Result<(), OutOfRange> {
        let mut left = range.end.saturating_sub(range.start);
        let mut at = self.check(range.start, left)?;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(COPY_STEP).min(COPY_STEP);
            let _alone = self.0.copies.write();
            // SAFETY: as in `read_at`.
            let to = unsafe { self.0.base.add(at) };
            // SAFETY: `step` bytes from `to` lie inside the mapping; others of this process are shut out by `copies`.
            unsafe { std::ptr::write_bytes(to.as_ptr(), byte, step) };
            at += step;
            left -= step as u64;
        }
        Ok(())
    }

    /// Copies from another memory, or another part of this one, by way of a small buffer: the two locks are never held at
    /// once, so copies in opposite directions cannot block one another.
    pub(crate) fn copy_from(&self, to: u64, source: &Self, from: u64, len: u64) -> Result<(), OutOfRange> {
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

/// Asks for huge pages; a kernel without them answers no, and the memory works all the same.
fn advise_huge(base: NonNull<u8>, len: usize) -> bool {
    // SAFETY: `base` and `len` lie inside a mapping of ours; the advice changes page sizes, not contents.
    unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) == 0 }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("len", &self.0.len).field("huge_pages", &self.0.huge).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_starts_zeroed_and_keeps_what_is_written() {
        for huge in [HugePages::Off, HugePages::Try] {
            let memory = Memory::host(5 << 20, huge).expect("5 MiB");
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

    #[test]
    fn ranges_that_leave_the_memory_are_refused_and_write_nothing() {
        let memory = Memory::host(4096, HugePages::Off).expect("a page");
        assert!(memory.write_at(4095, b"xx").is_err());
        assert!(memory.read_at(u64::MAX, &mut [0]).is_err());
        assert!(memory.fill(0..4097, 1).is_err());
        let mut last = [9];
        memory.read_at(4095, &mut last).expect("inside");
        assert_eq!(last, [0]);
        assert_eq!(Memory::host(0, HugePages::Off).expect_err("empty"), MemoryError::Empty);
        assert!(Memory::host(u64::MAX, HugePages::Try).is_err());
    }

    #[test]
    fn copies_may_overlap_in_one_memory_and_cross_steps() {
        let memory = Memory::host(4 << 20, HugePages::Off).expect("4 MiB");
        memory.fill(0..(2 << 20), 7).expect("inside");
        let other = Memory::host(4 << 20, HugePages::Off).expect("4 MiB");
        other.copy_from(3, &memory, 1, (2 << 20) + 5).expect("inside");
        let mut end = [0; 8];
        other.read_at((2 << 20) - 1, &mut end).expect("inside");
        assert_eq!(end, [7, 7, 7, 0, 0, 0, 0, 0]);
        memory.copy_from(1 << 20, &memory, 0, 2 << 20).expect("inside");
    }
}

//! Mapped host memory. Copies of this process exclude one another; hardware is not part of Rust's memory model.
#![allow(unsafe_code, reason = "mmap and raw copies")]

use std::{io, ptr::NonNull};

use cuda::{Gpu, Pinned};
use parking_lot::RwLock;

use super::{HugePages, MemoryError};

/// Size and alignment of a huge page on the machines that NIXL's wheels are built for.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes copied under one hold of the lock, so that a long copy does not keep others waiting.
const COPY_STEP: usize = 1 << 20;

/// Host memory. Offsets and lengths are checked by whoever calls.
pub(super) struct Mapping {
    /// What `munmap` gets back.
    map: NonNull<u8>,
    map_len: usize,
    /// The part in use: `len` bytes from here.
    base: NonNull<u8>,
    len: usize,
    huge: bool,
    /// Page-locked for the GPUs; let go before the mapping is.
    pinned: Option<Pinned>,
    /// Orders the copies of this process.
    copies: RwLock<()>,
}

// SAFETY: the mapping belongs to this value alone until Drop; its bytes are only reached by its copies, which take `copies`, and by
// hardware.
unsafe impl Send for Mapping {}
// SAFETY: as above: shared access goes through `copies`.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop(self.pinned.take());
        // SAFETY: `map` and `map_len` are what mmap gave; agents hold a `Memory` for as long as they know the address, so the
        // last handle is gone here.
        let _result = unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

impl Mapping {
    pub(super) fn new(len: u64, huge_pages: HugePages) -> Result<Self, MemoryError> {
        let too_large = || MemoryError::TooLarge { len };
        let size = usize::try_from(len).map_err(|_| too_large())?;
        if size == 0 {
            return Err(MemoryError::Empty);
        }
        // A huge page must start on its own boundary, which mmap does not promise: map one more and align inside.
        let spare = if huge_pages == HugePages::Try { HUGE_PAGE } else { 0 };
        let map_len = size.checked_add(spare).ok_or_else(too_large)?;
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
        Ok(Self { map, map_len, base, len: size, huge, pinned: None, copies: RwLock::new(()) })
    }

    /// The same, page-locked.
    pub(super) fn pinned(mut self, gpu: &Gpu) -> Result<Self, MemoryError> {
        // SAFETY: the range is mapped until the Drop of `self`, which lets `pinned` go first.
        self.pinned = Some(unsafe { Pinned::new(gpu, self.base, self.len) }?);
        Ok(self)
    }

    pub(super) fn len(&self) -> u64 {
        self.len as u64
    }

    pub(super) fn base(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    pub(super) fn huge_pages(&self) -> bool {
        self.huge
    }

    /// Takes all pages; answers whether the kernel has.
    pub(super) fn touch(&self) -> bool {
        // SAFETY: `base` and `len` lie inside the mapping, which `self` keeps; taking pages changes no contents.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_POPULATE_WRITE) == 0 }
    }

    pub(super) fn read_at(&self, mut at: usize, out: &mut [u8]) {
        for part in out.chunks_mut(COPY_STEP) {
            let _shared = self.copies.read();
            // SAFETY: `Memory` has checked that `at` and the bytes after it lie inside the mapping, which `self` keeps.
            let from = unsafe { self.base.add(at) };
            // SAFETY: both sides have `part.len()` bytes; `out` is a Rust slice and so no part of the mapping; writers of this
            // process are shut out by `copies`.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), part.as_mut_ptr(), part.len()) };
            at += part.len();
        }
    }

    pub(super) fn write_at(&self, mut at: usize, bytes: &[u8]) {
        for part in bytes.chunks(COPY_STEP) {
            let _alone = self.copies.write();
            // SAFETY: as in `read_at`.
            let to = unsafe { self.base.add(at) };
            // SAFETY: as in `read_at`; readers and writers of this process are shut out by `copies`.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), to.as_ptr(), part.len()) };
            at += part.len();
        }
    }

    pub(super) fn fill(&self, mut at: usize, mut left: usize, byte: u8) {
        while left > 0 {
            let step = left.min(COPY_STEP);
            let _alone = self.copies.write();
            // SAFETY: as in `read_at`.
            let to = unsafe { self.base.add(at) };
            // SAFETY: `step` bytes from `to` lie inside the mapping; others of this process are shut out by `copies`.
            unsafe { std::ptr::write_bytes(to.as_ptr(), byte, step) };
            at += step;
            left -= step;
        }
    }
}

/// Asks for huge pages; a kernel without them answers no, and the memory works all the same.
fn advise_huge(base: NonNull<u8>, len: usize) -> bool {
    // SAFETY: `base` and `len` lie inside a mapping of ours; the advice changes page sizes, not contents.
    unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) == 0 }
}

//! Plain device allocations: `cuMemAlloc`, which NIXL can register, UCX can share with another process by CUDA IPC, and a NIC can reach.
//! Never managed memory, which none of them takes.
#![allow(unsafe_code, reason = "calls the driver")]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::result;

use crate::error::{CudaError, of};
use crate::gpu::{Free, Gpu};
use crate::list::{self, Extent, ListError, Page};

/// Zeroed memory of one GPU, freed when the last handle is gone. Cloning shares it.
///
/// Every call returns when the device is done: a peer that reads after it finds what was written.
#[derive(Clone)]
pub struct DeviceMemory(Arc<Allocation>);

struct Allocation {
    gpu: Gpu,
    address: u64,
    len: u64,
}

impl DeviceMemory {
    /// Allocates `len` bytes.
    ///
    /// # Errors
    /// When the GPU has less free, or `len` is 0.
    pub fn new(gpu: &Gpu, len: u64) -> Result<Self, CudaError> {
        let Free { free, total } = gpu.memory()?;
        let short = CudaError::OutOfMemory { ordinal: gpu.ordinal(), asked: len, free, total };
        let size = usize::try_from(len).map_err(|_too_large| short.clone())?;
        if len > free {
            return Err(short);
        }
        gpu.make_current()?;
        // SAFETY: the context is current; the memory is this value's until its Drop.
        let address = unsafe { result::malloc_sync(size) }.map_err(|error| gpu.refused_memory(len, error))?;
        let memory = Self(Arc::new(Allocation { gpu: gpu.clone(), address, len }));
        memory.fill(0..len, 0)?;
        Ok(memory)
    }

    /// The GPU that it is on.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    /// Device address of byte 0: what NIXL and peers are told.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.0.address
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Never: the driver gives no memory of no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Copies bytes to the host, from `offset` on.
    ///
    /// # Errors
    /// When the range leaves the memory, or the driver refuses.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), CudaError> {
        let address = self.address(offset, out.len() as u64)?;
        if out.is_empty() {
            return Ok(());
        }
        self.0.gpu.flush_remote_writes()?;
        self.0.gpu.make_current()?;
        // SAFETY: `address` has shown that the allocation holds the range; the call returns when `out` is filled.
        of("cuMemcpyDtoH", unsafe { result::memcpy_dtoh_sync(out, address) })
    }

    /// Copies bytes from the host, from `offset` on.
    ///
    /// # Errors
    /// When the range leaves the memory, or the driver refuses.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), CudaError> {
        let address = self.address(offset, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.0.gpu.make_current()?;
        // SAFETY: `address` has shown that the allocation holds the range; the call returns when `bytes` were taken.
        of("cuMemcpyHtoD", unsafe { result::memcpy_htod_sync(address, bytes) })?;
        self.done()
    }

    /// Sets every byte of `range` to `byte`.
    ///
    /// # Errors
    /// When the range leaves the memory, or the driver refuses.
    pub fn fill(&self, range: Range<u64>, byte: u8) -> Result<(), CudaError> {
        let len = range.end.saturating_sub(range.start);
        let address = self.address(range.start, len)?;
        if len == 0 {
            return Ok(());
        }
        self.0.gpu.make_current()?;
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        // SAFETY: `address` has shown that the allocation holds the range.
        of("cuMemsetD8", unsafe { result::memset_d8_sync(address, byte, size) })?;
        self.done()
    }

    /// Copies from another device memory, or another part of this one that does not overlap.
    ///
    /// # Errors
    /// When a range leaves its memory, or the driver refuses.
    pub fn copy_from(&self, to: u64, source: &Self, from: u64, len: u64) -> Result<(), CudaError> {
        let target = self.address(to, len)?;
        let origin = source.address(from, len)?;
        if len == 0 {
            return Ok(());
        }
        self.0.gpu.make_current()?;
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        // SAFETY: `address` has shown that both allocations hold their ranges, and both are held by their handles.
        of("cuMemcpyDtoD", unsafe { result::memcpy_dtod_sync(target, origin, size) })?;
        self.done()
    }

    /// The digest of each page (`kv::digest::PageDigest`), computed on the GPU.
    ///
    /// # Errors
    /// When a page leaves the memory, or the driver refuses.
    pub fn digests(&self, pages: &[Page]) -> Result<Vec<u64>, CudaError> {
        let list = list::pages(self.extent(), pages)?;
        self.0.gpu.flush_remote_writes()?;
        self.0.gpu.with_launcher(|launcher| launcher.digest(&list, true))
    }

    /// How long the GPU takes for the digests of these pages, for a bench: without the list and the results on their way.
    ///
    /// # Errors
    /// As [`digests`](Self::digests).
    pub fn time_digests(&self, pages: &[Page]) -> Result<Duration, CudaError> {
        let list = list::pages(self.extent(), pages)?;
        self.0.gpu.with_launcher(|launcher| launcher.time_digest(&list))
    }

    /// The digests of the chunks of each page, one after the other: [`list::CHUNK`] bytes each, a page's last one maybe fewer.
    ///
    /// # Errors
    /// When a page leaves the memory, or the driver refuses.
    pub fn chunk_digests(&self, pages: &[Page]) -> Result<Vec<u64>, CudaError> {
        let list = list::pages(self.extent(), pages)?;
        self.0.gpu.flush_remote_writes()?;
        self.0.gpu.with_launcher(|launcher| launcher.digest(&list, false))
    }

    /// Zeroes ranges, all in one launch.
    ///
    /// # Errors
    /// When a range leaves the memory, or the driver refuses.
    pub fn zero(&self, ranges: &[Range<u64>]) -> Result<(), CudaError> {
        let list = list::ranges(self.extent(), ranges)?;
        self.0.gpu.with_launcher(|launcher| launcher.zero(&list))
    }

    /// Copies ranges to the host, one after the other: gathered on the GPU, and brought over in one copy. For as much as may be allocated
    /// there beside it.
    ///
    /// # Errors
    /// When a range leaves the memory, `out` has not as many bytes as the ranges, or the driver refuses.
    pub fn read_ranges(&self, ranges: &[Range<u64>], out: &mut [u8]) -> Result<(), CudaError> {
        self.check_total(ranges, out.len() as u64)?;
        self.0.gpu.flush_remote_writes()?;
        self.0.gpu.with_launcher(|launcher| launcher.gather(self.extent(), ranges, out))
    }

    /// Copies bytes from the host into ranges, one after the other: brought over in one copy, and scattered on the GPU.
    ///
    /// # Errors
    /// As [`read_ranges`](Self::read_ranges).
    pub fn write_ranges(&self, ranges: &[Range<u64>], bytes: &[u8]) -> Result<(), CudaError> {
        self.check_total(ranges, bytes.len() as u64)?;
        self.0.gpu.with_launcher(|launcher| launcher.scatter(self.extent(), ranges, bytes))
    }

    fn check_total(&self, ranges: &[Range<u64>], given: u64) -> Result<(), CudaError> {
        let len = |range: &Range<u64>| range.end.saturating_sub(range.start);
        let total = ranges.iter().map(len).fold(0, u64::saturating_add);
        if total == given { Ok(()) } else { Err(ListError::Total { ranges: total, given }.into()) }
    }

    fn extent(&self) -> Extent {
        Extent { base: self.0.address, len: self.0.len }
    }

    fn address(&self, offset: u64, len: u64) -> Result<u64, ListError> {
        self.extent().address(0, offset, len)
    }

    /// Copies to the device and within it may return before they are done.
    fn done(&self) -> Result<(), CudaError> {
        // SAFETY: the null stream is always there; the context was made current by the caller.
        of("cuStreamSynchronize", unsafe { result::stream::synchronize(result::stream::null()) })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // A refusal means that the context is lost, and its memory with it.
        let _current = self.gpu.make_current();
        // SAFETY: allocated by `DeviceMemory::new`, freed once; agents hold a handle for as long as they know the address.
        let _freed = unsafe { result::free_sync(self.address) };
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceMemory")
            .field("len", &self.0.len)
            .field("gpu", &self.0.gpu.ordinal())
            .finish_non_exhaustive()
    }
}

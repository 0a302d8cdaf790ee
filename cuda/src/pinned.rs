//! Host memory that is page-locked for the GPUs of this process, so that copies to and from them need no bounce buffer.
#![allow(unsafe_code, reason = "calls the driver")]

use std::fmt;
use std::ptr::NonNull;

use cudarc::driver::sys;

use crate::error::{CudaError, ok};
use crate::gpu::Gpu;

/// Holds a range of host memory page-locked until it is dropped.
pub struct Pinned {
    gpu: Gpu,
    base: NonNull<u8>,
}

// SAFETY: the address is only handed back to the driver, which takes it from any thread.
unsafe impl Send for Pinned {}
// SAFETY: as above; nothing is reached through a shared reference.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Page-locks `len` bytes from `base` on, for all GPUs. Every page is touched.
    ///
    /// # Safety
    /// The range is mapped, readable and writable, and stays so until this value is dropped.
    ///
    /// # Errors
    /// When the driver refuses: no memory, or more than may be locked.
    pub unsafe fn new(gpu: &Gpu, base: NonNull<u8>, len: usize) -> Result<Self, CudaError> {
        gpu.make_current()?;
        // SAFETY: the caller promises that the range is mapped for as long as it is registered.
        let registered =
            unsafe { sys::cuMemHostRegister_v2(base.as_ptr().cast(), len, sys::CU_MEMHOSTREGISTER_PORTABLE) };
        ok("cuMemHostRegister", registered)?;
        Ok(Self { gpu: gpu.clone(), base })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A refusal means that the context is lost: the lock goes with it.
        let _current = self.gpu.make_current();
        // SAFETY: registered by `new`, unregistered once, before its owner unmaps it.
        let _unregistered = unsafe { sys::cuMemHostUnregister(self.base.as_ptr().cast()) };
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("gpu", &self.gpu.ordinal()).finish_non_exhaustive()
    }
}

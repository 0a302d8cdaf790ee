//! One device: its memory, its context, its kernels.
#![allow(unsafe_code, reason = "calls the driver")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use cudarc::driver::{CudaContext, sys};
use parking_lot::Mutex;

use crate::driver::driver;
use crate::error::{CudaError, of, ok, refused};
use crate::kernels::Launcher;

/// The oldest compute capability that the PTX is for.
const OLDEST: (i32, i32) = (8, 0);
/// `CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST`: the host can make remote writes seen.
const FLUSH_BY_HOST: i32 = 1;

/// What is open, by number.
static OPEN: Mutex<BTreeMap<u32, Weak<Inner>>> = Mutex::new(BTreeMap::new());

/// One GPU. Cloning shares it, and so does opening it again: the kernels are compiled once, and run one launch at a time.
///
/// Its context is the device's primary one, which UCX uses too.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    // First: its module and its stream end before the context.
    launcher: Mutex<Option<Launcher>>,
    context: Arc<CudaContext>,
    ordinal: u32,
    name: String,
    /// Whether bytes that came over RDMA need a call before a kernel is sure to see them.
    flush: bool,
}

/// Memory of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Bytes that nobody has.
    pub free: u64,
    /// All bytes.
    pub total: u64,
}

impl Gpu {
    /// Opens GPU `ordinal` as this process counts them (`CUDA_VISIBLE_DEVICES`), and sees to it that it can run the kernels.
    ///
    /// # Errors
    /// No driver, no such GPU, or one that is too old.
    pub fn open(ordinal: u32) -> Result<Self, CudaError> {
        let count = driver()?.devices();
        let index = usize::try_from(ordinal).unwrap_or(usize::MAX);
        if ordinal >= count {
            return Err(CudaError::UnknownDevice { ordinal, count });
        }
        let mut open = OPEN.lock();
        if let Some(known) = open.get(&ordinal).and_then(Weak::upgrade) {
            return Ok(Self(known));
        }
        let context = of("cuDevicePrimaryCtxRetain", CudaContext::new(index))?;
        let name = of("cuDeviceGetName", context.name())?;
        let capability = of("cuDeviceGetAttribute", context.compute_capability())?;
        if capability < OLDEST {
            return Err(CudaError::TooSmall { ordinal, device: name, capability });
        }
        let flush = needs_flush(&context)?;
        let gpu = Self(Arc::new(Inner { launcher: Mutex::new(None), context, ordinal, name, flush }));
        // Here and not at the first digest: a driver that cannot compile the kernels is a reason not to start.
        gpu.with_launcher(|_launcher| Ok(()))?;
        open.insert(ordinal, Arc::downgrade(&gpu.0));
        Ok(gpu)
    }

    /// Its number in this process.
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        self.0.ordinal
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How much of its memory is free.
    ///
    /// # Errors
    /// When the driver does not say it.
    pub fn memory(&self) -> Result<Free, CudaError> {
        let (free, total) = of("cuMemGetInfo", self.0.context.mem_get_info())?;
        Ok(Free { free: free as u64, total: total as u64 })
    }

    /// Bytes per second that its memory moves at most, by its clock and its bus; none where the driver does not say them.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn memory_bandwidth(&self) -> Result<Option<u64>, CudaError> {
        use sys::CUdevice_attribute as Attribute;
        let attribute = |attribute| of("cuDeviceGetAttribute", self.0.context.attribute(attribute));
        let khz = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let bits = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        let product = |khz: i32, bits: i32| {
            // Twice in a clock.
            u64::try_from(khz).ok()?.checked_mul(2000)?.checked_mul(u64::try_from(bits).ok()? / 8)
        };
        Ok(product(khz, bits).filter(|bandwidth| *bandwidth > 0))
    }

    /// Whether its memory can be given to a NIC as a dma-buf, as far as the driver is concerned.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn exports_dma_buf(&self) -> Result<bool, CudaError> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED;
        Ok(of("cuDeviceGetAttribute", self.0.context.attribute(attribute))? != 0)
    }

    /// Makes its context the current one of the calling thread. NIXL's calls with memory of this GPU need that.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn make_current(&self) -> Result<(), CudaError> {
        of("cuCtxSetCurrent", self.0.context.bind_to_thread())
    }

    /// Sees to it that a kernel which is launched from here on finds all bytes that a NIC has written so far.
    pub(crate) fn flush_remote_writes(&self) -> Result<(), CudaError> {
        if !self.0.flush {
            return Ok(());
        }
        self.make_current()?;
        let target = sys::CUflushGPUDirectRDMAWritesTarget::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX;
        let scope = sys::CUflushGPUDirectRDMAWritesScope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER;
        // SAFETY: the context is current; the call touches no memory of ours.
        ok("cuFlushGPUDirectRDMAWrites", unsafe { sys::cuFlushGPUDirectRDMAWrites(target, scope) })
    }

    /// Does something with the kernels; one thread at a time.
    pub(crate) fn with_launcher<T>(
        &self,
        work: impl FnOnce(&mut Launcher) -> Result<T, CudaError>,
    ) -> Result<T, CudaError> {
        self.make_current()?;
        let mut slot = self.0.launcher.lock();
        let launcher = match &mut *slot {
            Some(launcher) => launcher,
            empty => empty.insert(Launcher::load(&self.0.context)?),
        };
        work(launcher)
    }

    /// Why `asked` bytes could not be had.
    pub(crate) fn refused_memory(&self, asked: u64, error: cudarc::driver::result::DriverError) -> CudaError {
        if error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return refused("cuMemAlloc", error);
        }
        let Free { free, total } = self.memory().unwrap_or(Free { free: 0, total: 0 });
        CudaError::OutOfMemory { ordinal: self.0.ordinal, asked, free, total }
    }
}

/// The device does not order a NIC's writes before a kernel by itself, and the host can.
fn needs_flush(context: &CudaContext) -> Result<bool, CudaError> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |attribute| of("cuDeviceGetAttribute", context.attribute(attribute));
    let ordering = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING)?;
    let options = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS)?;
    let by_itself = sys::CUGPUDirectRDMAWritesOrdering::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER as i32;
    Ok(ordering < by_itself && options & FLUSH_BY_HOST != 0)
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("ordinal", &self.0.ordinal).field("name", &self.0.name).finish_non_exhaustive()
    }
}

//! The CUDA driver, absent or present.
//!
//! `cudarc` loads it at its first call, and panics when that fails. So it is looked for here first, in the same places, with every
//! function that this crate calls.
#![allow(unsafe_code, reason = "loads a library")]

use std::error::Error as _;
use std::sync::OnceLock;

use cudarc::driver::{result, sys};
use libloading::Library;

use crate::error::{CudaError, of, ok};

/// CUDA's number for 12.0, whose PTX the kernels are in.
const OLDEST: i32 = 12_000;
/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: u32 = 100;

/// Every function that is called, here or in `cudarc` on our behalf.
const FUNCTIONS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyHtoD_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyDtoD_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemsetD8_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
    "cuFlushGPUDirectRDMAWrites",
];

/// A driver that was found and initialised.
#[derive(Clone, Debug)]
pub struct Driver {
    path: String,
    version: i32,
    devices: u32,
}

impl Driver {
    /// The library's file, where the system says it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The newest CUDA that it serves: 1000 × major + 10 × minor.
    #[must_use]
    pub fn version(&self) -> i32 {
        self.version
    }

    /// How many GPUs this process sees, at least one.
    #[must_use]
    pub fn devices(&self) -> u32 {
        self.devices
    }
}

/// The driver of this process. The first call looks for it, which takes up to a few seconds; what it found stays.
///
/// # Errors
/// When there is none that can be used, or no GPU.
pub fn driver() -> Result<&'static Driver, CudaError> {
    static FOUND: OnceLock<Result<Driver, CudaError>> = OnceLock::new();
    FOUND.get_or_init(look).as_ref().map_err(Clone::clone)
}

fn look() -> Result<Driver, CudaError> {
    let library = load()?;
    let path = path_of(&library);
    for &symbol in FUNCTIONS {
        // SAFETY: the symbol is only looked up, nothing is called through it.
        let found = unsafe { library.get::<*const ()>(symbol.as_bytes()) };
        if found.is_err() {
            return Err(CudaError::Incomplete { path, symbol });
        }
    }
    // A driver cannot be unloaded: it has threads of its own.
    let _for_ever = Box::leak(Box::new(library));
    of("cuInit", result::init()).map_err(no_device)?;
    let mut version = 0;
    // SAFETY: the out pointer lives through the call.
    ok("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    if version < OLDEST {
        return Err(CudaError::TooOld { version });
    }
    let devices = of("cuDeviceGetCount", result::device::get_count()).map_err(no_device)?;
    match u32::try_from(devices) {
        Ok(devices) if devices > 0 => Ok(Driver { path, version, devices }),
        Ok(_) | Err(_) => Err(CudaError::NoDevice { name: "it counts none".to_owned() }),
    }
}

/// The first library that `cudarc` will find too.
fn load() -> Result<Library, CudaError> {
    let mut detail = String::new();
    for name in cudarc::get_lib_name_candidates("cuda") {
        // SAFETY: the driver's initialisers run, as they do in every program that uses CUDA.
        match unsafe { Library::new(&name) } {
            Ok(library) => return Ok(library),
            // The last name is the one that drivers have: what is said of it says most.
            Err(error) => detail = error.source().map_or_else(|| error.to_string(), ToString::to_string),
        }
    }
    Err(CudaError::NoDriver { detail })
}

/// Where the library was loaded from, by the process's own map.
fn path_of(library: &Library) -> String {
    // SAFETY: the symbol is only looked up; its address is compared, not called.
    let init = unsafe { library.get::<*const ()>(b"cuInit") };
    let address = init.map_or(0, |symbol| (*symbol).addr());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().find_map(|line| holds(line, address)).unwrap_or("libcuda.so.1").to_owned()
}

/// The file of a line of `/proc/self/maps`, if the line's range holds the address.
fn holds(line: &str, address: usize) -> Option<&str> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let file = rest.get(rest.find('/')?..)?;
    (start <= address && address < end).then_some(file)
}

fn no_device(error: CudaError) -> CudaError {
    if let CudaError::Call { code: NO_DEVICE, name, .. } = error { CudaError::NoDevice { name } } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_map_tells_the_file_that_holds_an_address() {
        let line = "7f0000001000-7f0000002000 r-xp 00000000 fe:00 42   /usr/lib/libcuda.so.1";
        assert_eq!(holds(line, 0x7f00_0000_1fff), Some("/usr/lib/libcuda.so.1"));
        assert_eq!(holds(line, 0x7f00_0000_2000), None);
        assert_eq!(holds("7f0000001000-7f0000002000 rw-p 00000000 00:00 0", 0x7f00_0000_1000), None);
    }
}

//! The CUDA driver, if there is one. The library is looked for when asked, so that a machine without a GPU gets an answer, not a crash.

use std::ffi::{c_char, c_int, c_uint};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The driver's library; the name without a version belongs to development packages.
const LIBRARY: &str = "libcuda.so.1";
/// Machines have 16 GPUs at most so far; the bound keeps a library that lies from holding us.
const MAX_DEVICES: c_int = 64;

/// What the driver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDriver {
    /// The newest CUDA that it supports: major and minor.
    pub supports: (c_int, c_int),
    /// The names of the GPUs that this process may use.
    pub devices: Vec<String>,
}

/// Why the driver says nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is none, or it cannot be opened.
    #[error("no CUDA driver ({LIBRARY})")]
    NoLibrary(#[source] libloading::Error),
    /// Something of that name that is not the driver.
    #[error("{LIBRARY} lacks {symbol}")]
    MissingSymbol {
        /// The first one missing.
        symbol: &'static str,
        /// The dynamic loader's words.
        #[source]
        source: libloading::Error,
    },
    /// The driver answered an error.
    #[error("{call} answered CUDA error {code}")]
    Call {
        /// The C function.
        call: &'static str,
        /// `CUresult`: 100 is "no device", 803 a driver that does not fit the kernel's, 999 unknown.
        code: c_int,
    },
}

type Init = unsafe extern "C" fn(c_uint) -> c_int;
type Number = unsafe extern "C" fn(*mut c_int) -> c_int;
type DeviceGet = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type DeviceName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;

/// Asks the driver for its version and its GPUs. Makes no context and allocates nothing on a GPU.
///
/// # Errors
/// [`CudaError`].
pub fn cuda_driver() -> Result<CudaDriver, CudaError> {
    // SAFETY: the driver's constructors are those that every CUDA program runs.
    let library = unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_LOCAL) }.map_err(CudaError::NoLibrary)?;
    // The driver keeps threads and thread-local state once it is initialised: never closed.
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: these are the signatures of CUDA's driver API, unchanged since 4.0; none of the calls keeps a pointer.
    let init: Init = unsafe { symbol(library, "cuInit")? };
    // SAFETY: as above.
    let version: Number = unsafe { symbol(library, "cuDriverGetVersion")? };
    // SAFETY: as above.
    let count: Number = unsafe { symbol(library, "cuDeviceGetCount")? };
    // SAFETY: as above.
    let get: DeviceGet = unsafe { symbol(library, "cuDeviceGet")? };
    // SAFETY: as above.
    let name: DeviceName = unsafe { symbol(library, "cuDeviceGetName")? };

    // SAFETY: 0 is the only flag there is.
    ok("cuInit", unsafe { init(0) })?;
    let (mut supports, mut devices): (c_int, c_int) = (0, 0);
    // SAFETY: writes one number.
    ok("cuDriverGetVersion", unsafe { version(&raw mut supports) })?;
    // SAFETY: writes one number.
    ok("cuDeviceGetCount", unsafe { count(&raw mut devices) })?;
    let mut names = Vec::new();
    for ordinal in 0..devices.min(MAX_DEVICES) {
        let mut device: c_int = 0;
        // SAFETY: writes one number; the ordinal is below the count.
        ok("cuDeviceGet", unsafe { get(&raw mut device, ordinal) })?;
        let mut text = [0_u8; 96];
        // SAFETY: writes at most 95 bytes and a NUL.
        ok("cuDeviceGetName", unsafe { name(text.as_mut_ptr().cast(), 95, device) })?;
        let text: Vec<u8> = text.into_iter().take_while(|byte| *byte != 0).collect();
        names.push(String::from_utf8_lossy(&text).into_owned());
    }
    Ok(CudaDriver { supports: (supports / 1000, supports % 1000 / 10), devices: names })
}

/// # Safety
///
/// `T` is the C type of the function of that name.
unsafe fn symbol<T: Copy>(library: &'static Library, symbol: &'static str) -> Result<T, CudaError> {
    // SAFETY: the caller promises the type.
    let found = unsafe { library.get::<T>(symbol) };
    found.map(|found| *found).map_err(|source| CudaError::MissingSymbol { symbol, source })
}

fn ok(call: &'static str, code: c_int) -> Result<(), CudaError> {
    if code == 0 { Ok(()) } else { Err(CudaError::Call { call, code }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_gets_an_answer() {
        match cuda_driver() {
            Ok(driver) => println!("{driver:?}"),
            Err(error) => {
                println!("{error}");
                let there = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/cuda/compat"]
                    .iter()
                    .any(|folder| std::path::Path::new(folder).join(LIBRARY).exists());
                assert!(there || matches!(error, CudaError::NoLibrary(_)), "{error:?}");
            }
        }
    }
}

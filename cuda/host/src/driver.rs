//! A library that stands in for `libcuda.so.1` on machines without a GPU: the calls that kvgate makes, over host memory.
//!
//! It is strict where a device is: a context must be current, memory is not zeroed, no host code may touch device memory (its pages are
//! locked between calls), and a list that a launch reads must lie in it. What it cannot show: timing, ordering between streams, what a
//! real compiler makes of the PTX.

use std::error::Error as _;
use std::ffi::{CString, c_char, c_int, c_long};
use std::path::Path;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The folder with `libcuda.so.1` in it, for the `LD_LIBRARY_PATH` of a process. It takes settings from the variable `KVGATE_HOST_CUDA`, as
/// in `devices=2,bytes=1073741824,version=12000,capability=80,guarded=0,init=100`; `guarded=0` lets NIXL reach the memory.
#[must_use]
pub fn folder() -> &'static Path {
    Path::new(env!("KVGATE_HOST_DRIVER"))
}

/// What is preloaded (`LD_PRELOAD`) into a process with the stand-in, so that NIXL registers its device memory as VRAM: UCX, which moves the
/// bytes as those of host memory, is made to call it a GPU's. With `guarded=0`.
#[must_use]
pub fn preload() -> std::path::PathBuf {
    folder().join("memory_type.so")
}

/// The library, loaded into this process before anybody looks for a driver: whoever opens `libcuda.so.1` from then on gets it.
#[derive(Debug)]
pub struct HostDriver(Library);

/// What it counts.
#[derive(Clone, Copy, Debug)]
pub enum Count {
    /// Bytes of device memory that are allocated.
    Bytes,
    /// Ranges of host memory that are page-locked.
    Pinned,
    /// Modules that are loaded.
    Modules,
    /// Streams.
    Streams,
    /// Primary contexts that are retained.
    Contexts,
    /// Flushes of remote writes so far.
    Flushes,
    /// Launches so far.
    Launches,
}

impl HostDriver {
    /// Loads it, unless this machine has a driver of its own, which then is what a test runs on. Says so by `SKIPPED: gpu`.
    ///
    /// # Panics
    /// When there is none and `REQUIRE` (a comma-separated list) names `gpu`.
    #[expect(clippy::print_stdout, clippy::panic, reason = "for tests only: this is how they report")]
    pub fn unless_gpu() -> Option<&'static Self> {
        static LOADED: OnceLock<Option<HostDriver>> = OnceLock::new();
        let load = || {
            // SAFETY: the driver's initialisers run, as they do in every program that uses CUDA.
            let missing = match unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) } {
                Ok(driver) => {
                    // A driver cannot be unloaded: it has threads of its own.
                    let _for_ever = Box::leak(Box::new(driver));
                    return None;
                }
                Err(missing) => missing.source().map_or_else(|| missing.to_string(), ToString::to_string),
            };
            let required = std::env::var_os("REQUIRE").unwrap_or_default();
            if required.to_string_lossy().split(',').any(|what| what.trim() == "gpu") {
                panic!("REQUIRE=gpu: {missing}");
            }
            println!("SKIPPED: gpu: {missing}; on the host's driver instead");
            // SAFETY: its initialisers do nothing.
            let loaded = unsafe { Library::open(Some(folder().join("libcuda.so.1")), RTLD_NOW | RTLD_GLOBAL) };
            Some(Self(loaded.unwrap_or_else(|error| panic!("the host's driver: {error}"))))
        };
        LOADED.get_or_init(load).as_ref()
    }

    /// Lets `call` go well `passes` times more and then refuses it with `status`; 0: no more refusals.
    ///
    /// # Errors
    /// When the library is another one.
    pub fn refuse(&self, call: &str, passes: i64, status: i32) -> Result<(), libloading::Error> {
        // SAFETY: the library's function of this name has this type.
        let refuse = unsafe { self.0.get::<unsafe extern "C" fn(*const c_char, c_long, c_int)>(b"kvgate_refuse") }?;
        let call = CString::new(call).unwrap_or_default();
        // SAFETY: the text lives through the call, which copies it.
        unsafe { refuse(call.as_ptr(), passes, status) };
        Ok(())
    }

    /// Lets the rest of this process touch device memory from now on, as a NIC may, and makes it so many devices. Before the first use.
    ///
    /// # Errors
    /// When the library is another one.
    pub fn unguard(&self, devices: i32) -> Result<(), libloading::Error> {
        // SAFETY: the library's function of this name has this type.
        let unguard = unsafe { self.0.get::<unsafe extern "C" fn(c_int)>(b"kvgate_unguard") }?;
        // SAFETY: changes what the driver knows, under its lock.
        unsafe { unguard(devices) };
        Ok(())
    }

    /// A number.
    ///
    /// # Errors
    /// When the library is another one.
    pub fn count(&self, which: Count) -> Result<i64, libloading::Error> {
        // SAFETY: the library's function of this name has this type.
        let count = unsafe { self.0.get::<unsafe extern "C" fn(c_int) -> c_long>(b"kvgate_count") }?;
        // SAFETY: reads a number.
        Ok(unsafe { count(which as c_int) })
    }
}

//! What UCX, NIXL's transport, says of this machine: version, transports and devices, configuration, memory types.
//!
//! For `doctor` and for error texts, not for a data path. The functions are taken from the very libucp that NIXL's UCX
//! plugin has mapped, so there is something to ask only after a UCX backend was created or its parameters were read.
//! Each question may take some milliseconds (domains are opened, devices probed) and touches nothing of NIXL's.

#[rustfmt::skip]
#[allow(
    dead_code,
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::indexing_slicing,
    reason = "written by bindgen; documented in include/ucx.h"
)]
mod bindings;
mod context;
mod transports;

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_NOW};

use self::bindings::{UcxFunctions, ucp_lib_attr, ucp_lib_attr_field, ucs_status_t, ucs_thread_mode_t};
pub use self::context::MemoryTypes;
pub use self::transports::{DeviceKind, Transport};
use crate::load::{Mapped, find};

/// The oldest UCX whose list of transports has the layout that we read.
const OLDEST: (u32, u32) = (1, 10);

/// The UCX that NIXL uses in this process.
pub struct Ucx {
    functions: UcxFunctions,
    path: PathBuf,
    release: (u32, u32, u32),
    /// Keeps the functions where they are; last, so that it goes last.
    _library: Library,
}

/// Why UCX cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UcxError {
    /// Nothing has loaded UCX into this process yet.
    #[error("UCX is not loaded in this process; it is after NIXL has created a UCX backend")]
    NotMapped,
    /// The mapped file cannot be opened again.
    #[error("{} is mapped and cannot be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The dynamic loader's words.
        #[source]
        source: libloading::Error,
    },
    /// The mapped UCX lacks functions.
    #[error("{} lacks {symbol}", path.display())]
    MissingSymbol {
        /// The file.
        path: PathBuf,
        /// The first one missing.
        symbol: &'static str,
    },
    /// The mapped UCX has other structs than we know.
    #[error("UCX {major}.{minor} is too old to be asked; 1.10 is the oldest")]
    TooOld {
        /// Its version.
        major: u32,
        /// Its version.
        minor: u32,
    },
    /// UCX answered an error.
    #[error("{call} answered {code}: {words}")]
    Call {
        /// The C function.
        call: &'static str,
        /// UCX's status.
        code: i8,
        /// UCX's words for it.
        words: String,
    },
    /// No stream in memory for UCX to print to.
    #[error("no memory for UCX's text")]
    Stream(#[source] std::io::Error),
}

/// From how many threads UCX can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadLevel {
    /// One thread, always the same.
    Single,
    /// One thread at a time.
    Serialized,
    /// Any.
    Multi,
    /// A number that this crate does not know.
    Unknown(u32),
}

impl Ucx {
    /// Finds the UCX that NIXL's UCX plugin uses.
    pub fn of_nixl() -> Result<Self, UcxError> {
        let mapped = Mapped::now();
        // Through the plugin its own libucp is found, even if the process holds another one. A NIXL with the plugin
        // built in has none; then libucp itself.
        let path = mapped.library("libplugin_UCX").or_else(|| mapped.library("libucp"));
        let path = path.ok_or(UcxError::NotMapped)?.to_path_buf();
        // SAFETY: NOLOAD opens what is there already, so no constructor runs.
        let opened = unsafe { Library::open(Some(&path), RTLD_NOW | libc::RTLD_NOLOAD) };
        let library = opened.map_err(|source| UcxError::Open { path: path.clone(), source })?;
        // SAFETY: the header declares what these names are in every UCX since 1.10, and the answer keeps the library.
        let functions = unsafe { UcxFunctions::resolve(|symbol| find(&library, symbol)) };
        let functions = functions.map_err(|missing| UcxError::MissingSymbol {
            path: path.clone(),
            symbol: missing.first().copied().unwrap_or_default(),
        })?;
        let (mut major, mut minor, mut patch): (c_uint, c_uint, c_uint) = (0, 0, 0);
        // SAFETY: writes three numbers.
        unsafe { (functions.ucp_get_version)(&raw mut major, &raw mut minor, &raw mut patch) };
        if (major, minor) < OLDEST {
            return Err(UcxError::TooOld { major, minor });
        }
        let path = file_of(functions.ucp_get_version as *const c_void).unwrap_or(path);
        Ok(Self { functions, path, release: (major, minor, patch), _library: library })
    }

    /// The libucp in use.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// UCX's version as it writes it, for example `1.23.0`.
    pub fn version(&self) -> String {
        // SAFETY: takes nothing.
        let text = unsafe { (self.functions.ucp_get_version_string)() };
        // SAFETY: UCX answers a static string.
        unsafe { text_of(text) }
    }

    /// UCX's version as numbers.
    pub fn release(&self) -> (u32, u32, u32) {
        self.release
    }

    /// From how many threads this build can be used; NIXL needs [`ThreadLevel::Multi`].
    pub fn thread_level(&self) -> Result<ThreadLevel, UcxError> {
        let mut attributes = ucp_lib_attr {
            field_mask: ucp_lib_attr_field::UCP_LIB_ATTR_FIELD_MAX_THREAD_LEVEL.0.into(),
            max_thread_level: ucs_thread_mode_t::UCS_THREAD_MODE_SINGLE,
        };
        // SAFETY: UCX writes the one field that the mask names.
        let status = unsafe { (self.functions.ucp_lib_query)(&raw mut attributes) };
        self.ok("ucp_lib_query", status)?;
        Ok(match attributes.max_thread_level {
            ucs_thread_mode_t::UCS_THREAD_MODE_SINGLE => ThreadLevel::Single,
            ucs_thread_mode_t::UCS_THREAD_MODE_SERIALIZED => ThreadLevel::Serialized,
            ucs_thread_mode_t::UCS_THREAD_MODE_MULTI => ThreadLevel::Multi,
            ucs_thread_mode_t(other) => ThreadLevel::Unknown(other),
        })
    }

    fn ok(&self, call: &'static str, code: ucs_status_t) -> Result<(), UcxError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: any number is allowed.
        let words = unsafe { (self.functions.ucs_status_string)(code) };
        // SAFETY: UCX answers a static string.
        let words = unsafe { text_of(words) };
        Err(UcxError::Call { call, code, words })
    }
}

impl fmt::Debug for Ucx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ucx").field("path", &self.path).field("release", &self.release).finish_non_exhaustive()
    }
}

/// # Safety
///
/// `text` is null or a C string that stays for the call.
unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller promises the rest.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The file that holds the code at `address`.
fn file_of(address: *const c_void) -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: any address may be asked for; the answer goes into `info`.
    let found: c_int = unsafe { libc::dladdr(address, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader keeps the name as long as the library, which the caller holds.
    let name = unsafe { text_of(info.dli_fname) };
    PathBuf::from(name).canonicalize().ok()
}

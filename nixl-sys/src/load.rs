//! Finding and opening `libnixl_capi.so`, and every way in which that fails.
//!
//! The first of these that names a library decides; what is configured (1, 2) is used or refused, never replaced:
//!
//! 1. the path given to [`Api::load`](crate::Api::load)
//! 2. `NIXL_CAPI_LIBRARY` (a file), else `NIXL_PREFIX` (an installation)
//! 3. the NIXL that this process has mapped already, for example by Python
//! 4. the loader's own search for `libnixl_capi.so.0` and `libnixl_capi.so` (`LD_LIBRARY_PATH`, `ld.so.conf`)
//! 5. `target/nixl/` above the executable or the current folder, where `make setup` puts the wheel
//! 6. the wheels of the active Python environment (`VIRTUAL_ENV`, `CONDA_PREFIX`)
//! 7. NVIDIA's default prefix
//!
//! Paths are canonicalised first, because the library finds `libnixl.so` relative to the path that it was opened by.

mod error;
mod mapped;
mod places;

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

pub use error::{LoadError, Tried};
pub(crate) use mapped::Mapped;
pub use places::Source;
use places::{Candidate, Surroundings};

use crate::api::Origin;
use crate::bindings::Functions;

/// A library that has passed every check.
pub(crate) struct Loaded {
    pub(crate) functions: Functions,
    pub(crate) origin: Origin,
}

/// Goes through the places in order.
pub(crate) fn load(explicit: Option<&Path>) -> Result<Loaded, LoadError> {
    let around = Surroundings::of_this_process();
    let mapped = Mapped::now();
    if let Some(path) = explicit {
        return open_configured(&[Candidate::new(path, Source::Explicit)], &mapped);
    }
    if let Some(configured) = around.configured() {
        return open_configured(&configured, &mapped);
    }
    if let Some(nixl) = mapped.nixl() {
        let beside = nixl.with_file_name(places::LIBRARY);
        if !beside.exists() {
            return Err(LoadError::Conflict { mapped: nixl.to_path_buf(), wanted: beside });
        }
        return open_configured(&[Candidate::new(&beside, Source::Mapped)], &mapped);
    }
    let mut tried = Vec::new();
    for candidate in around.search(&mapped) {
        match open(&candidate, &mapped) {
            // Missing or not openable: the next place may do. Anything else was opened and stays mapped, so that
            // opening another one would put two copies into this process.
            Err(LoadError::NotFound { tried: more }) => tried.extend(more),
            Err(LoadError::NotALibrary { path, reason }) => tried.push(Tried { path, reason: reason.to_string() }),
            other => return other,
        }
    }
    Err(LoadError::NotFound { tried })
}

/// Opens the first that exists; a configured library that fails is an error, not a reason to look elsewhere.
fn open_configured(candidates: &[Candidate], mapped: &Mapped) -> Result<Loaded, LoadError> {
    let mut tried = Vec::new();
    for candidate in candidates {
        match open(candidate, mapped) {
            Err(LoadError::NotFound { tried: more }) => tried.extend(more),
            other => return other,
        }
    }
    Err(LoadError::NotFound { tried })
}

fn open(candidate: &Candidate, mapped: &Mapped) -> Result<Loaded, LoadError> {
    let path = if candidate.source == Source::SystemSearch {
        candidate.path.clone()
    } else {
        candidate.path.canonicalize().map_err(|error| LoadError::NotFound {
            tried: vec![Tried { path: candidate.path.clone(), reason: error.to_string() }],
        })?
    };
    if let Some(nixl) = mapped.nixl()
        && nixl.parent() != path.parent()
    {
        return Err(LoadError::Conflict { mapped: nixl.to_path_buf(), wanted: path });
    }
    // SAFETY: opening runs the library's constructors; whoever configures or installs a NIXL library vouches for it.
    let opened = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
    let library = opened.map_err(|reason| LoadError::NotALibrary { path: path.clone(), reason })?;
    // Never closed, not even when it fails the checks: NIXL has thread-local state whose destructors would run from
    // unmapped memory.
    check(&ManuallyDrop::new(library), path, candidate.source)
}

/// Checks what was opened.
fn check(library: &Library, path: PathBuf, source: Source) -> Result<Loaded, LoadError> {
    let resolved = {
        let find = |symbol: &'static str| find(library, symbol);
        // SAFETY: the header declares what these names are in every NIXL since 0.9, and the library is never closed.
        unsafe { Functions::resolve(find) }
    };
    let functions = match resolved {
        Ok(functions) => functions,
        Err(missing) => {
            return Err(match missing.first() {
                Some(&symbol) if missing.len() < Functions::REQUIRED.len() => {
                    LoadError::MissingSymbol { path, symbol, missing: missing.len() }
                }
                _ => LoadError::NotNixl { path },
            });
        }
    };
    // SAFETY: takes nothing and keeps nothing.
    if unsafe { (functions.is_stub)() } {
        return Err(LoadError::Stub { path });
    }
    let after = Mapped::now();
    if let [first, second, ..] = after.copies() {
        return Err(LoadError::Conflict { mapped: first.clone(), wanted: second.clone() });
    }
    let path = if source == Source::SystemSearch { after.capi().map_or(path, Path::to_path_buf) } else { path };
    let mock = !find(library, "mock_set").is_null();
    let origin = Origin { mock, ..Origin::guess(path, source, after.nixl(), &functions) };
    Ok(Loaded { functions, origin })
}

/// The address of a symbol, null when the library has none of that name.
pub(crate) fn find(library: &Library, symbol: &str) -> *mut std::ffi::c_void {
    // SAFETY: any symbol is an address; it is only copied here.
    let found = unsafe { library.get::<*mut std::ffi::c_void>(symbol) };
    found.map_or(std::ptr::null_mut(), |symbol| symbol.as_raw_ptr())
}

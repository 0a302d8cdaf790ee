//! [`Api`]: the loaded library.

use std::fmt;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::bindings::Functions;
use crate::load::{self, LoadError, Loaded, Source};

/// NIXL's C API of this process. The functions are fields, named as in C without `nixl_capi_`.
pub struct Api {
    functions: Functions,
    origin: Origin,
}

/// Where the loaded library comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The library's canonical path.
    pub path: PathBuf,
    /// How it was chosen.
    pub source: Source,
    /// Its version: of the wheel that it lies in, else what its functions tell. The library itself has none.
    pub version: String,
    /// Where NIXL looks for its plugins.
    pub plugin_dir: PathBuf,
    /// Whether it is the tests' stand-in (`nixl/tests/mock`), which moves bytes by memcpy.
    pub mock: bool,
}

static LOADED: Mutex<Option<&'static Api>> = Mutex::new(None);

impl Api {
    /// Loads NIXL, once for the whole process: later calls answer the same, and a later call for another library is a
    /// [`LoadError::Conflict`]. A failure is not remembered. The search order is told in [`crate::load`].
    ///
    /// Takes 25 to 80 ms the first time. Logs nothing: log [`Api::origin`].
    pub fn load(explicit: Option<&Path>) -> Result<&'static Self, LoadError> {
        let mut loaded = LOADED.lock();
        if let Some(api) = *loaded {
            return match explicit {
                Some(path) if path.canonicalize().ok().as_ref() != Some(&api.origin.path) => {
                    Err(LoadError::Conflict { mapped: api.origin.path.clone(), wanted: path.to_path_buf() })
                }
                _ => Ok(api),
            };
        }
        let Loaded { functions, origin } = load::load(explicit)?;
        let api: &'static Self = Box::leak(Box::new(Self { functions, origin }));
        *loaded = Some(api);
        Ok(api)
    }

    /// What [`Api::load`] has loaded so far.
    pub fn loaded() -> Option<&'static Self> {
        *LOADED.lock()
    }

    /// Where the library comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl Deref for Api {
    type Target = Functions;

    fn deref(&self) -> &Functions {
        &self.functions
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Origin {
    pub(crate) fn guess(path: PathBuf, source: Source, nixl: Option<&Path>, functions: &Functions) -> Self {
        let folder = nixl.unwrap_or(&path).parent().unwrap_or(Path::new("/")).to_path_buf();
        let plugin_dir = match std::env::var_os("NIXL_PLUGIN_DIR").filter(|set| !set.is_empty()) {
            Some(set) => PathBuf::from(set),
            None => folder.join("plugins"),
        };
        let version = wheel_version(&folder).unwrap_or_else(|| {
            let newest = functions.optional_found() == Functions::OPTIONAL.len();
            (if newest { "1.5 or newer" } else { "0.9 to 1.4" }).to_owned()
        });
        Self { path, source, version, plugin_dir, mock: false }
    }
}

/// The version in the name of the `nixl_cu13-1.5.1.dist-info` beside `.nixl_cu13.mesonpy.libs`.
fn wheel_version(folder: &Path) -> Option<String> {
    let wheel = folder.file_name()?.to_str()?.strip_prefix('.')?.strip_suffix(".mesonpy.libs")?;
    let entries = fs::read_dir(folder.parent()?).ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let version = name.strip_suffix(".dist-info")?.strip_prefix(wheel)?.strip_prefix('-')?;
        Some(version.to_owned())
    })
}

//! [`LoadError`]: what was tried, what is wrong, what to do.

use std::fmt;
use std::path::PathBuf;

/// One place that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The file, folder or bare name.
    pub path: PathBuf,
    /// Why it did not do.
    pub reason: String,
}

/// Why there is no NIXL. The text names each thing tried and how to install one.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// No place has a library that can be opened.
    NotFound {
        /// Every place, in the order tried.
        tried: Vec<Tried>,
    },
    /// The file is there and the dynamic loader refuses it: not a shared library, the wrong machine, or a dependency
    /// of it is missing.
    NotALibrary {
        /// The file.
        path: PathBuf,
        /// The dynamic loader's words.
        reason: libloading::Error,
    },
    /// A shared library, and nothing of NIXL in it.
    NotNixl {
        /// The file.
        path: PathBuf,
    },
    /// A NIXL that lacks functions which every version since 0.9 has.
    MissingSymbol {
        /// The file.
        path: PathBuf,
        /// The first one missing.
        symbol: &'static str,
        /// How many are missing.
        missing: usize,
    },
    /// A forwarding stub with no NIXL behind it.
    Stub {
        /// The file.
        path: PathBuf,
    },
    /// A second copy of NIXL in one process: the dynamic loader would mix the two.
    Conflict {
        /// The copy that is in use.
        mapped: PathBuf,
        /// The one refused.
        wanted: PathBuf,
    },
}

const INSTALL: &str = "install NIXL with `make setup` (from a checkout) or `pip install nixl-cu13`, or set \
                       NIXL_CAPI_LIBRARY to the path of libnixl_capi.so";

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { tried } => {
                f.write_str("no NIXL library (libnixl_capi.so) found; tried:")?;
                for Tried { path, reason } in tried {
                    write!(f, "\n  {}: {reason}", path.display())?;
                }
                write!(f, "\n{INSTALL}")
            }
            Self::NotALibrary { path, .. } => {
                write!(f, "{} cannot be opened as a shared library; {INSTALL}", path.display())
            }
            Self::NotNixl { path } => {
                write!(f, "{} is a shared library, but not NIXL's libnixl_capi.so; {INSTALL}", path.display())
            }
            Self::MissingSymbol { path, symbol, missing } => write!(
                f,
                "{} lacks {symbol} ({missing} of the functions of NIXL 0.9 are missing): NIXL 0.9 to 1.5 is needed; {INSTALL}",
                path.display()
            ),
            Self::Stub { path } => {
                write!(f, "{} is a stub that found no NIXL behind it; {INSTALL}", path.display())
            }
            Self::Conflict { mapped, wanted } => write!(
                f,
                "this process already uses the NIXL at {}, so {} is refused: two copies in one process get mixed up; \
                 use the first everywhere (NIXL_CAPI_LIBRARY), or another process",
                mapped.display(),
                wanted.display()
            ),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotALibrary { reason, .. } => Some(reason),
            Self::NotFound { .. }
            | Self::NotNixl { .. }
            | Self::MissingSymbol { .. }
            | Self::Stub { .. }
            | Self::Conflict { .. } => None,
        }
    }
}

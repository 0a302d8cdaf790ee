//! The places where a NIXL library may be.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mapped::Mapped;

/// The library's file name up to NIXL 1.5.
pub(super) const LIBRARY: &str = "libnixl_capi.so";
/// Its names, the announced one first.
const NAMES: [&str; 2] = ["libnixl_capi.so.0", LIBRARY];
/// Where NVIDIA's own builds go.
const DEFAULT_PREFIX: &str = "/opt/nvidia/nvda_nixl";

/// How a library came to be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path given by the program.
    Explicit,
    /// `NIXL_CAPI_LIBRARY` or `NIXL_PREFIX`.
    Environment,
    /// In this process already.
    Mapped,
    /// The dynamic loader's own search.
    SystemSearch,
    /// A wheel that `make setup` put below `target/nixl/`.
    Fetched,
    /// A wheel of the active Python environment.
    PythonWheel,
    /// NVIDIA's default prefix.
    DefaultPrefix,
}

/// One file to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    pub(super) source: Source,
}

impl Candidate {
    pub(super) fn new(path: &Path, source: Source) -> Self {
        Self { path: path.to_path_buf(), source }
    }
}

/// What of the process's surroundings decides where to look.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    library: Option<OsString>,
    prefix: Option<OsString>,
    python: Vec<OsString>,
    /// Folders from which `target/nixl` is searched upward.
    starts: Vec<PathBuf>,
}

impl Surroundings {
    pub(super) fn of_this_process() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let executable = std::env::current_exe().ok();
        let folder = std::env::current_dir().ok();
        Self {
            library: set("NIXL_CAPI_LIBRARY"),
            prefix: set("NIXL_PREFIX"),
            python: ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(set).collect(),
            starts: executable.into_iter().chain(folder).collect(),
        }
    }

    /// What the environment names, if it does.
    pub(super) fn configured(&self) -> Option<Vec<Candidate>> {
        if let Some(library) = &self.library {
            return Some(vec![Candidate::new(Path::new(library), Source::Environment)]);
        }
        self.prefix.as_ref().map(|prefix| in_prefix(Path::new(prefix), Source::Environment))
    }

    /// The places to search, in order, when nothing is configured or mapped.
    pub(super) fn search(&self, mapped: &Mapped) -> Vec<Candidate> {
        let mut found: Vec<_> =
            NAMES.iter().map(|name| Candidate::new(Path::new(name), Source::SystemSearch)).collect();
        let mut fetched: Vec<PathBuf> = Vec::new();
        for folder in self.starts.iter().flat_map(|start| start.ancestors()) {
            let folder = folder.join("target/nixl");
            if !fetched.contains(&folder) && trusted(&folder) {
                fetched.push(folder);
            }
        }
        let wheels = fetched.iter().flat_map(|folder| in_wheels(&children(folder), mapped));
        found.extend(wheels.map(|path| Candidate { path, source: Source::Fetched }));
        for environment in &self.python {
            let pythons = children(&Path::new(environment).join("lib"));
            let sites: Vec<_> = pythons
                .iter()
                .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")))
                .map(|path| path.join("site-packages"))
                .collect();
            found.extend(
                in_wheels(&sites, mapped).into_iter().map(|path| Candidate { path, source: Source::PythonWheel }),
            );
        }
        found.extend(in_prefix(Path::new(DEFAULT_PREFIX), Source::DefaultPrefix));
        found
    }
}

/// The library's possible paths below an installation.
fn in_prefix(prefix: &Path, source: Source) -> Vec<Candidate> {
    let machine = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    ["lib64", &machine, "lib", ""]
        .iter()
        .flat_map(|folder| NAMES.map(|name| Candidate::new(&prefix.join(folder).join(name), source)))
        .collect()
}

/// The libraries of the wheels unpacked in `sites`: first those for the CUDA runtime that is mapped, else the newer.
fn in_wheels(sites: &[PathBuf], mapped: &Mapped) -> Vec<PathBuf> {
    let cuda = if mapped.has("libcudart.so.12") { ["12", "13"] } else { ["13", "12"] };
    let folders =
        cuda.iter().flat_map(|cuda| sites.iter().map(move |site| site.join(format!(".nixl_cu{cuda}.mesonpy.libs"))));
    folders.flat_map(|folder| NAMES.map(|name| folder.join(name))).filter(|path| path.is_file()).collect()
}

/// Sub-folders, sorted, the highest first.
fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders.reverse();
    folders
}

/// A folder found by walking upward is used only if it belongs to root or to this user and not everybody may write to
/// it: a program started in a shared folder must not run what others left there.
fn trusted(folder: &Path) -> bool {
    // SAFETY: takes nothing, cannot fail.
    let user = unsafe { libc::geteuid() };
    fs::metadata(folder).is_ok_and(|folder| {
        folder.is_dir() && (folder.uid() == 0 || folder.uid() == user) && folder.mode() & 0o002 == 0
    })
}

//! NIXL's plugins, each opened once to hear why it would not load: NIXL itself logs that at INFO only.

use std::io;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// One plugin's file and what the dynamic loader says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriedPlugin {
    /// NIXL's name for it, for example `UCX`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The dynamic loader's words, when it refuses.
    pub refused: Option<String>,
}

/// Opens every `libplugin_NAME.so` of a folder, sorted by name. What opens stays mapped: plugins do not survive being closed.
///
/// # Errors
/// When the folder cannot be read.
pub fn try_plugins(folder: &Path) -> io::Result<Vec<TriedPlugin>> {
    let mut tried = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("libplugin_"));
        if let Some(name) = name.and_then(|name| name.strip_suffix(".so")) {
            tried.push(TriedPlugin { name: name.to_owned(), refused: refusal(&path), path });
        }
    }
    tried.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tried)
}

/// Opens UCX's CUDA modules, which lie in the folder `ucx` beside its library, sorted by name: UCX itself goes on without one that does not
/// load, and says so at INFO only. What opens stays mapped.
///
/// # Errors
/// When the folder cannot be read.
pub fn try_cuda_modules(libucp: &Path) -> io::Result<Vec<TriedPlugin>> {
    let mut tried = Vec::new();
    for entry in std::fs::read_dir(libucp.with_file_name("ucx"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once(".so"));
        if let Some((name @ ("libuct_cuda" | "libucm_cuda"), _)) = name {
            tried.push(TriedPlugin { name: name.to_owned(), refused: refusal(&path), path });
        }
    }
    tried.sort_by(|a, b| a.path.cmp(&b.path));
    // A module and the links to it are one.
    tried.dedup_by(|a, b| a.name == b.name);
    Ok(tried)
}

fn refusal(path: &Path) -> Option<String> {
    // SAFETY: opening runs the plugin's constructors, as NIXL would; whoever installs a NIXL vouches for its plugins.
    match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) } {
        Ok(library) => {
            // Its constructors may have left threads and thread-local state behind.
            Box::leak(Box::new(library));
            None
        }
        Err(error) => Some(words(&error)),
    }
}

/// The loader's own words are the error's source in some versions of `libloading`, its text in others.
fn words(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_modules_lie_beside_ucx() {
        let folder = tempfile::tempdir().unwrap();
        let ucx = folder.path().join("ucx");
        std::fs::create_dir(&ucx).unwrap();
        for name in ["libuct_cuda.so.0.0.0", "libuct_cuda.la", "libucm_cuda.so.0", "libuct_ib.so.0"] {
            std::fs::write(ucx.join(name), "not a library").unwrap();
        }
        let tried = try_cuda_modules(&folder.path().join("libucp.so.0")).unwrap();
        assert_eq!(tried.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["libucm_cuda", "libuct_cuda"]);
        assert!(tried.iter().all(|module| module.refused.is_some()));
    }

    #[test]
    fn a_file_that_is_no_library_is_named_with_the_loader_s_words() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libplugin_BAD.so"), "not a library").unwrap();
        std::fs::write(folder.path().join("README"), "not a plugin").unwrap();
        let tried = try_plugins(folder.path()).unwrap();
        assert_eq!(tried.len(), 1);
        assert_eq!(tried[0].name, "BAD");
        assert!(tried[0].refused.as_ref().is_some_and(|words| words.contains("libplugin_BAD.so")), "{tried:?}");
        assert!(try_plugins(&folder.path().join("missing")).is_err());
    }
}

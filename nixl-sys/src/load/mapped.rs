//! Which shared libraries this process has mapped, by `/proc/self/maps`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The files mapped at one moment.
#[derive(Debug, Default)]
pub(crate) struct Mapped {
    files: BTreeSet<PathBuf>,
    copies: Vec<PathBuf>,
}

impl Mapped {
    /// Reads the map now; empty where there is no `/proc`.
    pub(crate) fn now() -> Self {
        Self::parse(&fs::read("/proc/self/maps").unwrap_or_default())
    }

    /// Lines of `address permissions offset device inode path`.
    fn parse(maps: &[u8]) -> Self {
        let path = |line: &[u8]| {
            let at = line.iter().position(|&byte| byte == b'/')?;
            let path = line.get(at..)?;
            Some(PathBuf::from(OsStr::from_bytes(path.strip_suffix(b" (deleted)").unwrap_or(path))))
        };
        let files: BTreeSet<PathBuf> = maps.split(|&byte| byte == b'\n').filter_map(path).collect();
        let copies = files.iter().filter(|file| is_library(file, "libnixl")).cloned().collect();
        Self { files, copies }
    }

    /// Every mapped `libnixl.so`.
    pub(crate) fn copies(&self) -> &[PathBuf] {
        &self.copies
    }

    /// The `libnixl.so` in use.
    pub(crate) fn nixl(&self) -> Option<&Path> {
        self.copies.first().map(PathBuf::as_path)
    }

    /// The mapped C API.
    pub(crate) fn capi(&self) -> Option<&Path> {
        self.library("libnixl_capi")
    }

    /// The first mapped file that is library `stem`, also under a wheel's or a version's name.
    pub(crate) fn library(&self, stem: &str) -> Option<&Path> {
        self.files.iter().find(|file| is_library(file, stem)).map(PathBuf::as_path)
    }

    /// Whether a library whose file name starts with `prefix` is mapped.
    pub(crate) fn has(&self, prefix: &str) -> bool {
        self.files.iter().any(|file| name(file).starts_with(prefix))
    }
}

fn name(file: &Path) -> &str {
    file.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// `stem.so`, `stem.so.1.2` or, as wheels rename what they bundle, `stem-0123abcd.so.1`.
fn is_library(file: &Path, stem: &str) -> bool {
    let Some(rest) = name(file).strip_prefix(stem) else { return false };
    rest == ".so" || rest.starts_with(".so.") || (rest.starts_with('-') && rest.contains(".so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"\
7f00-7f01 r--p 00000000 08:01 11   /a b/lib/libnixl.so\n\
7f01-7f02 r-xp 00001000 08:01 11   /a b/lib/libnixl.so\n\
7f02-7f03 r--p 00000000 08:01 12   /a b/lib/libnixl_capi.so.0\n\
7f03-7f04 r--p 00000000 08:01 13   /w/nixl.libs/libucp-b39b3ed9.so.0.0.0\n\
7f04-7f05 r--p 00000000 08:01 14   /usr/lib/libcudart.so.12 (deleted)\n\
7f05-7f06 rw-p 00000000 00:00 0    [heap]\n\
7f06-7f07 rw-p 00000000 00:00 0\n";

    #[test]
    fn libraries_are_found_under_each_of_their_names() {
        let mapped = Mapped::parse(MAPS);
        assert_eq!(mapped.copies(), [PathBuf::from("/a b/lib/libnixl.so")]);
        assert_eq!(mapped.capi(), Some(Path::new("/a b/lib/libnixl_capi.so.0")));
        assert_eq!(mapped.library("libucp"), Some(Path::new("/w/nixl.libs/libucp-b39b3ed9.so.0.0.0")));
        assert_eq!(mapped.library("libuct"), None);
        assert!(mapped.has("libcudart.so.12"));
        assert!(!mapped.has("libcudart.so.13"));
    }

    #[test]
    fn two_files_are_two_copies() {
        let mapped = Mapped::parse(b"0-1 r--p 0 0:0 1 /x/libnixl.so\n0-1 r--p 0 0:0 1 /y/libnixl.so\n");
        assert_eq!(mapped.copies().len(), 2);
        assert!(Mapped::parse(b"\xff\xfe\n/").nixl().is_none());
    }
}

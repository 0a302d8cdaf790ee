//! A load in a process of its own, because what is loaded and mapped belongs to the whole process.

use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use nixl_sys::Api;

/// Name of the test that does the child's work.
const TEST: &str = "probe";
const MAP: &str = "NIXL_SYS_TEST_MAP";
const LOAD: &str = "NIXL_SYS_TEST_LOAD";

/// What the child does: maps `map` as some other part of a program would, then loads each of `load` (empty: `None`).
#[derive(Debug, Default)]
pub(crate) struct Probe<'a> {
    pub(crate) map: Option<&'a Path>,
    pub(crate) load: Vec<PathBuf>,
    pub(crate) environment: Vec<(&'a str, PathBuf)>,
    pub(crate) folder: Option<&'a Path>,
    /// Runs a copy of this program, away from `target/`.
    pub(crate) moved: bool,
}

impl Probe<'_> {
    /// One line for each load: `ok SOURCE VERSION PATH` or the error's variant and text.
    pub(crate) fn run(&self) -> Vec<String> {
        let scratch = tempfile::tempdir().unwrap();
        let mut program = std::env::current_exe().unwrap();
        if self.moved {
            let copy = scratch.path().join("copy");
            std::fs::copy(&program, &copy).unwrap();
            program = copy;
        }
        let mut command = Command::new(program);
        command.args(["--exact", TEST, "--nocapture", "--test-threads=1"]);
        for name in
            ["NIXL_CAPI_LIBRARY", "NIXL_PREFIX", "NIXL_PLUGIN_DIR", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"]
        {
            command.env_remove(name);
        }
        command.current_dir(self.folder.unwrap_or(scratch.path()));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env(LOAD, std::env::join_paths(&self.load).unwrap());
        if let Some(map) = self.map {
            command.env(MAP, map);
        }
        // A copy of this program that has just been written is busy until children of other tests have left this process's files behind.
        let output = loop {
            match command.output() {
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                output => break output.unwrap(),
            }
        };
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        let results: Vec<_> =
            text.split("<<<").filter_map(|part| part.split_once(">>>")).map(|(r, _)| r.to_owned()).collect();
        assert_eq!(results.len(), self.load.len(), "{text}");
        results
    }
}

/// The child's side; nothing in the parent.
#[expect(unsafe_code, reason = "maps a library as another part of a program would")]
pub(crate) fn child() {
    let Some(loads) = std::env::var_os(LOAD) else { return };
    if let Some(map) = std::env::var_os(MAP) {
        // SAFETY: a library made by the test, without constructors.
        let library = unsafe { Library::open(Some(map), RTLD_NOW | RTLD_LOCAL) }.unwrap();
        let _mapped = ManuallyDrop::new(library);
    }
    for load in std::env::split_paths(&loads) {
        let explicit = (!load.as_os_str().is_empty()).then_some(load.as_path());
        match Api::load(explicit) {
            Ok(api) => {
                let origin = api.origin();
                println!("<<<ok {:?} {} {}>>>", origin.source, origin.version, origin.path.display());
            }
            Err(error) => {
                let variant = format!("{error:?}");
                let variant = variant.split([' ', '{']).next().unwrap_or_default();
                println!("<<<{variant} {error}>>>");
            }
        }
    }
}

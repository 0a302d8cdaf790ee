//! The router's configuration file.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::path::Path;

use clap::{Args as _, Command};
use router::config::Args;
use router::config::command_line::understand;
use tempfile::TempDir;

use crate::memory::Bound;

/// clap's table of flags is made for every look at a command line.
const TABLE: Bound = Bound { base: 64 << 20, each: 64 << 10 };

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

/// A file for `--config`: what is printed as in effect is such a file, and says the same.
pub fn config_file(data: &[u8]) {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| TempDir::new().expect("a folder")).path();
        let Some(printed) = TABLE.holds_for(data.len(), || in_effect(&folder.join("given"), data)) else { return };
        let again = in_effect(&folder.join("printed"), printed.as_bytes());
        assert_eq!(again.as_deref(), Some(printed.as_str()), "what is in effect is not what was printed");
    });
}

fn in_effect(path: &Path, text: &[u8]) -> Option<String> {
    std::fs::write(path, text).expect("the file is written");
    let line: Vec<OsString> =
        ["router", "--print-config", "--config"].map(OsString::from).into_iter().chain([path.into()]).collect();
    understand(Args::augment_args(Command::new("router")), &line, std::iter::empty()).ok()?.print
}

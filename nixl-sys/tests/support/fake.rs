//! Libraries that look like NIXL's, made by the C compiler.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use nixl_sys::bindings::Functions;

use crate::c;

/// What the fake lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fake {
    /// Nothing: every required function is there.
    Whole,
    /// It says of itself that it is a stub.
    Stub,
    /// Its last function.
    Short,
}

/// Makes `libnixl_capi.so` and, beside it, a `libnixl.so` that it needs, in `folder`.
pub(crate) fn install(folder: &Path, fake: Fake) -> Option<PathBuf> {
    fs::create_dir_all(folder).unwrap();
    let below = folder.join("libnixl.so");
    build(&below, "int fake_nixl(void);\nint fake_nixl(void) { return 0; }\n", None)?;
    let mut text = String::from("extern int fake_nixl(void);\n");
    let last = if fake == Fake::Short { 1 } else { 0 };
    for symbol in &Functions::REQUIRED[..Functions::REQUIRED.len() - last] {
        let answer = if *symbol == "nixl_capi_is_stub" && fake == Fake::Stub { "1" } else { "fake_nixl()" };
        writeln!(text, "int {symbol}(void);\nint {symbol}(void) {{ return {answer}; }}").unwrap();
    }
    let path = folder.join("libnixl_capi.so");
    build(&path, &text, Some(&below))?;
    Some(path)
}

fn build(library: &Path, text: &str, needs: Option<&Path>) -> Option<()> {
    let mut compiler = c::compiler()?;
    let source = library.with_extension("c");
    fs::write(&source, text).unwrap();
    let name = library.file_name()?.to_str()?;
    compiler.args(["-shared", "-fPIC", "-Wl,-rpath,$ORIGIN", &format!("-Wl,-soname,{name}")]);
    compiler.arg("-o").arg(library).arg(&source).args(needs);
    c::run(&mut compiler);
    Some(())
}

//! Compiles the kernels' source with a host compiler: for calls from Rust, and into a shared library that stands in for the driver.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in ["../kernels", "src", "driver", "ucx"] {
        println!("cargo::rerun-if-changed={source}");
    }
    let mut bridge = cxx_build::bridge("src/lib.rs");
    kernels(&mut bridge, here).file("src/run.cc").compile("kvgate_kernels");

    let folder = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names a folder")).join("driver");
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut build = cc::Build::new();
    let mut command = to_be_loaded(&kernels(&mut build, here).cpp(true).include(here.join("src")).get_compiler());
    command.args(["calls.cc", "state.cc"].map(|source| here.join("driver").join(source)));
    command.args(["-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1", "-o"]).arg(folder.join("libcuda.so.1"));
    let status = command.status().expect("a C++ compiler");
    assert!(status.success(), "the driver compiles: {command:?}");
    let mut command = to_be_loaded(&cc::Build::new().std("gnu11").warnings(true).get_compiler());
    command
        .arg(here.join("ucx/memory_type.c"))
        .args(["-shared", "-fPIC", "-ldl", "-o"])
        .arg(folder.join("memory_type.so"));
    let status = command.status().expect("a C compiler");
    assert!(status.success(), "what is preloaded compiles: {command:?}");
    println!("cargo::rustc-env=KVGATE_HOST_DRIVER={}", folder.display());
}

/// Compiles a library that is loaded. Without a sanitizer: it would need its runtime in the program, ahead of everything else.
fn to_be_loaded(compiler: &cc::Tool) -> Command {
    let mut command = Command::new(compiler.path());
    command.args(compiler.args().iter().filter(|arg| *arg != "-fsanitize=address"));
    command
}

fn kernels<'a>(build: &'a mut cc::Build, here: &Path) -> &'a mut cc::Build {
    build
        .include(here.join("../kernels"))
        .std("c++17")
        // A launch gets its lists as words and reads them as structs, as it does on the device.
        .flag("-fno-strict-aliasing")
        // The device refuses an address that is not aligned for what is read there; so does this build.
        .flag("-fsanitize=alignment")
        .flag("-fsanitize-undefined-trap-on-error")
        // Also without optimisation of the Rust side: random cases are many.
        .opt_level(2)
}

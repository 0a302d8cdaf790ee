//! Compiles the kernels' source with a host compiler: for calls from Rust, and into a shared library that stands in for the driver.

use std::path::{Path, PathBuf};

fn main() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in ["../kernels", "src", "driver", "ucx"] {
        println!("cargo::rerun-if-changed={source}");
    }
    let mut bridge = cxx_build::bridge("src/lib.rs");
    kernels(&mut bridge, here).file("src/run.cc").compile("kvgate_kernels");

    let folder = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names a folder")).join("driver");
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut command =
        kernels(&mut cc::Build::new(), here).cpp(true).include(here.join("src")).get_compiler().to_command();
    command.args(["calls.cc", "state.cc"].map(|source| here.join("driver").join(source)));
    command.args(["-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1", "-o"]).arg(folder.join("libcuda.so.1"));
    let status = command.status().expect("a C++ compiler");
    assert!(status.success(), "the driver compiles: {command:?}");
    let mut command = cc::Build::new().std("gnu11").warnings(true).get_compiler().to_command();
    command
        .arg(here.join("ucx/memory_type.c"))
        .args(["-shared", "-fPIC", "-ldl", "-o"])
        .arg(folder.join("memory_type.so"));
    let status = command.status().expect("a C compiler");
    assert!(status.success(), "what is preloaded compiles: {command:?}");
    println!("cargo::rustc-env=KVGATE_HOST_DRIVER={}", folder.display());
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

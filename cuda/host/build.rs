//! Compiles the kernels' source with a host compiler.

use std::path::Path;

fn main() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernels = here.join("../kernels");
    for source in ["../kernels", "src"] {
        println!("cargo::rerun-if-changed={source}");
    }
    cxx_build::bridge("src/lib.rs")
        .file("src/run.cc")
        .include(kernels)
        .std("c++17")
        // A launch gets its lists as words and reads them as structs, as it does on the device.
        .flag("-fno-strict-aliasing")
        // The device refuses an address that is not aligned for what is read there; so does this build.
        .flag("-fsanitize=alignment")
        .flag("-fsanitize-undefined-trap-on-error")
        // Also without optimisation of the Rust side: random cases are many.
        .opt_level(2)
        .compile("kvgate_kernels");
}

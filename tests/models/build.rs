//! Tells the files that are included here that they are built over loom; they leave their own tests out.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}

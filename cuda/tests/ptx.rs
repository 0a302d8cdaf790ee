//! The checked-in PTX belongs to the kernels' source and is as it was made: always by hashes that stand in it, of the source and of its own
//! text, and by compiling it anew where `make kernels` has put nvcc.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and asks what is required"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// As `scripts/kernels` says it: the names and texts of all sources, in the order of the names.
fn hash_of_sources() -> String {
    let folder = root().join("cuda/kernels");
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.filter(|name| name.ends_with(".cuh") || name.ends_with(".cu")).collect();
    names.sort();
    assert!(names.len() >= 5, "{names:?}");
    let mut hash = Sha256::new();
    for name in names {
        let text = std::fs::read(folder.join(&name)).unwrap();
        hash.update(format!("{name} {}\n", text.len()));
        hash.update(text);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_ptx_was_made_from_this_source() {
    let said =
        cuda::PTX.lines().find_map(|line| line.strip_prefix("// Sources: sha256 ")).expect("a line with the hash");
    assert_eq!(said, hash_of_sources(), "the kernels have changed: run make kernels and commit the result");
}

#[test]
fn the_ptx_is_as_it_was_made() {
    let (head, text) = cuda::PTX.split_once("// Text below: sha256 ").expect("a line with the hash");
    let (said, text) = text.split_once('\n').expect("text below it");
    assert!(head.lines().all(|line| line.starts_with("//")), "{head}");
    let hash: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(said, hash, "it was edited: run make kernels and commit the result");
}

#[test]
fn every_kernel_is_in_it_for_sm_80_and_cuda_12_0() {
    for kernel in ["digest_chunks", "fold_chunks", "zero_ranges", "copy_ranges"] {
        assert!(cuda::PTX.contains(&format!(".visible .entry {kernel}(")), "{kernel}");
    }
    assert!(cuda::PTX.contains("\n.target sm_80\n"));
    assert!(cuda::PTX.contains("\n.version 8.0\n"), "a driver of CUDA 12.0 must be able to read it");
}

#[test]
fn compiling_the_source_gives_the_same_ptx() {
    let root = root();
    if !root.join("target/nvcc/.complete").exists() {
        let required = std::env::var("REQUIRE").unwrap_or_default();
        assert!(
            !required.split(',').any(|required| required == "nvcc"),
            "nvcc is required: make kernels-check fetches it"
        );
        println!("SKIPPED: nvcc: make kernels-check fetches it (120 MB)");
        return;
    }
    let output = Command::new(root.join("scripts/kernels-check")).output().expect("a script");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

//! What a reviewer would say twice, as a test: file lengths, module docs, where `unsafe` may live, no machine's paths.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Lines of a Rust file: 400 is the elbow, this is the end.
const MAX_LINES: usize = 600;

/// Made by a tool, see its header.
const GENERATED: &[&str] = &["nixl-sys/src/bindings.rs", "nixl-sys/src/ucx/bindings.rs"];

/// The crates that may talk to C; the simulation defines two functions of the C library.
const UNSAFE_HERE: &[&str] = &["nixl-sys/", "nixl/", "cuda/", "tests/sim/src/entropy.rs"];

/// Every file git tracks, with its text; files that are not text are left out.
fn files(suffix: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output =
        Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).output().expect("git lists the files");
    assert!(output.status.success(), "git ls-files failed");
    let names = String::from_utf8(output.stdout).unwrap();
    let names = names.split('\0').filter(|name| !name.is_empty() && name.ends_with(suffix));
    names.filter_map(|name| Some((name.to_owned(), std::fs::read_to_string(root.join(name)).ok()?))).collect()
}

fn complain(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

fn rust_files() -> Vec<(String, String)> {
    let files = files(".rs");
    assert!(files.len() > 20, "the list of files looks wrong: {}", files.len());
    files.into_iter().filter(|(name, _)| !GENERATED.contains(&name.as_str())).collect()
}

#[test]
fn no_file_is_longer_than_a_reader_s_patience() {
    let long = rust_files()
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES);
    complain("files over 600 lines", &long.map(|(name, lines)| format!("{name}: {lines}")).collect::<Vec<_>>());
}

#[test]
fn every_file_says_what_it_is() {
    let silent = rust_files().into_iter().filter(|(name, text)| {
        // A compile-fail case is read with its test.
        !name.contains("/ui/") && !name.contains("/compile_fail/") && !text.starts_with("//!")
    });
    complain("files that do not start with //! docs", &silent.map(|(name, _)| name).collect::<Vec<_>>());
}

#[test]
fn names_say_what_a_module_is_for() {
    const NOTHING: &[&str] = &["common", "util", "utils", "manager", "helper", "helpers", "misc", "mod"];
    let vague = rust_files().into_iter().filter(|(name, _)| {
        let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        NOTHING.contains(&stem)
    });
    complain("modules named after nothing", &vague.map(|(name, _)| name).collect::<Vec<_>>());
}

#[test]
fn unsafe_code_lives_in_the_ffi_crates_only() {
    let outside = rust_files().into_iter().filter(|(name, text)| {
        name != "tests/tidy.rs"
            && !UNSAFE_HERE.iter().any(|folder| name.starts_with(folder))
            && text.lines().any(|line| {
                !line.trim_start().starts_with("//")
                    && (line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl"))
            })
    });
    complain("unsafe outside the FFI crates", &outside.map(|(name, _)| name).collect::<Vec<_>>());
}

#[test]
fn crates_that_need_no_unsafe_code_forbid_it() {
    const NEED_IT: &[&str] = &["nixl-sys/", "nixl/", "cuda/", "tests/sim/"];
    let roots =
        rust_files().into_iter().filter(|(name, _)| name.ends_with("src/lib.rs") || name.ends_with("src/main.rs"));
    let lenient = roots.filter(|(name, text)| {
        !NEED_IT.iter().any(|folder| name.starts_with(folder)) && !text.contains("\n#![forbid(unsafe_code)]\n")
    });
    complain("crates without #![forbid(unsafe_code)]", &lenient.map(|(name, _)| name).collect::<Vec<_>>());
}

#[test]
fn tests_are_not_switched_off() {
    let off = rust_files().into_iter().filter(|(name, text)| name != "tests/tidy.rs" && text.contains("#[ignore"));
    complain("ignored tests", &off.map(|(name, _)| name).collect::<Vec<_>>());
}

#[test]
fn nothing_names_one_machine() {
    let mut found = Vec::new();
    for (name, text) in files("") {
        if name == "tests/tidy.rs" || name.ends_with(".lock") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if ["/work/", "/root/", "/home/"].iter().any(|path| line.contains(path)) {
                found.push(format!("{name}:{}", number + 1));
            }
        }
    }
    complain("paths of one machine", &found);
}

#[test]
fn every_test_that_a_promise_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    // `FILE.rs::NAME`, between backticks.
    let named: Vec<_> = text.split('`').filter_map(|code| code.split_once(".rs::")).collect();
    assert!(named.len() > 60, "only {} tests are named", named.len());
    let missing = named.into_iter().filter(|(file, name)| {
        let tests = std::fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_default();
        !tests.contains(&format!("fn {name}("))
    });
    complain("tests that do not exist", &missing.map(|(file, name)| format!("{file}.rs::{name}")).collect::<Vec<_>>());
}

#[test]
fn every_removal_can_be_made_and_is_told_of() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let told = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let patches = files(".patch").into_iter().filter(|(name, _)| name.starts_with("tests/removals/"));
    let mut found = Vec::new();
    let mut count = 0;
    for (name, text) in patches {
        count += 1;
        let output =
            Command::new("git").arg("-C").arg(root).args(["apply", "--check", &name]).output().expect("git checks it");
        if !output.status.success() {
            found.push(format!("{name} does not apply: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        let test = text.lines().find_map(|line| line.strip_prefix("Test: ")).unwrap_or("Test:");
        if !told.contains(&format!("`{test}`")) {
            found.push(format!("{name}: docs/reliability.md does not tell of {test}"));
        }
    }
    assert!(count >= 10, "only {count} removals");
    complain("removals that have gone stale (`make removals`)", &found);
}

#[test]
fn what_must_not_know_of_nixl_or_cuda_does_not_link_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for package in ["router", "kv"] {
        let output = Command::new(env!("CARGO"))
            .current_dir(root)
            .args(["tree", "--offline", "--package", package, "--edges", "normal", "--prefix", "none"])
            .output()
            .expect("cargo draws the tree");
        assert!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
        let tree = String::from_utf8(output.stdout).unwrap();
        let ours = tree.lines().filter(|line| line.starts_with("nixl") || line.starts_with("cuda"));
        complain(&format!("{package} depends on"), &ours.map(str::to_owned).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_fuzzed_is_what_is_built() {
    let packages = |lock: &str| -> BTreeSet<(String, String)> {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(lock)).unwrap();
        let field = |package: &str, name: &str| {
            let value = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
            Some(value.trim_matches('"').to_owned())
        };
        let packages = text.split("[[package]]").skip(1);
        packages.map(|package| (field(package, "name").unwrap(), field(package, "version").unwrap())).collect()
    };
    let (built, fuzzed) = (packages("Cargo.lock"), packages("fuzz/Cargo.lock"));
    let names: BTreeSet<&String> = built.iter().map(|(name, _)| name).collect();
    assert!(fuzzed.iter().any(|(name, _)| name == "router") && names.len() > 100, "the lists look wrong");
    let other = fuzzed.iter().filter(|package| names.contains(&package.0) && !built.contains(package));
    complain(
        "fuzz/Cargo.lock has other versions than Cargo.lock (copy it there, then `cargo metadata --manifest-path fuzz/Cargo.toml`)",
        &other.map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>(),
    );
}

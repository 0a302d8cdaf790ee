//! Every target has what `make fuzz` needs of it.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use fuzz_targets::ALL;

#[test]
fn each_target_has_a_corpus_and_a_program_and_there_are_no_others() {
    let mut targets: Vec<String> = ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    targets.sort();
    assert_eq!(names("corpus"), targets);
    assert_eq!(names("targets"), targets.iter().map(|name| format!("{name}.rs")).collect::<Vec<_>>());
    let manifest = std::fs::read_to_string(fuzz("Cargo.toml")).expect("the manifest");
    for name in targets {
        let program = std::fs::read_to_string(fuzz(&format!("targets/{name}.rs"))).expect("a program");
        assert!(program.contains(&format!("fuzz_targets::{name}(data)")), "{name}.rs runs another target");
        assert!(
            manifest.contains(&format!("[[bin]]\nname = \"{name}\"\npath = \"targets/{name}.rs\"\n")),
            "{name} is not built"
        );
    }
}

fn fuzz(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(path)
}

fn names(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(fuzz(folder)).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

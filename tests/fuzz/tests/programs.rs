//! Every target has what `make fuzz` needs of it.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "kept/folder.rs"]
mod folder;

use folder::{fuzz, names};
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

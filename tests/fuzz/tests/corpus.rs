//! Every input that is kept, through the function that the fuzzer runs.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "kept/folder.rs"]
mod folder;

use folder::{fuzz, names};
use fuzz_targets::ALL;

/// What is kept is read at each `make test`, and by everybody who clones the tree.
const MOST_INPUTS: usize = 300;
const MOST_BYTES: usize = 1 << 20;

/// One test for all, so that what is allocated meanwhile is a target's.
#[test]
fn every_kept_input_is_read_as_it_must_be() {
    let (mut inputs, mut bytes) = (0, 0);
    for (name, target) in ALL {
        let corpus = names(&format!("corpus/{name}"));
        assert!(corpus.len() >= 5, "{name} has {} inputs", corpus.len());
        for file in &corpus {
            let input = std::fs::read(fuzz(&format!("corpus/{name}/{file}"))).expect("an input");
            let read = std::panic::catch_unwind(|| target(&input));
            assert!(read.is_ok(), "fuzz/corpus/{name}/{file} fails");
            bytes += input.len();
        }
        inputs += corpus.len();
    }
    println!("{inputs} inputs of {bytes} bytes in all");
    assert!(inputs < MOST_INPUTS && bytes < MOST_BYTES, "{inputs} inputs of {bytes} bytes are too many");
    let bytes: [&[u8]; 6] = [b"", b"\0", b"\xff", b"{", b"[]", &[0xff; 300]];
    ALL.iter().for_each(|(_, target)| bytes.iter().for_each(|bytes| target(bytes)));
}

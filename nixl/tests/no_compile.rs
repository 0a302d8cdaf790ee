//! What must not compile: the unsound cases of nixl-ffi.md §2.3 that the types rule out. Those that are safe values here instead
//! are in `tests/real/soundness.rs`.

#[test]
fn unsound_programs_do_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/no_compile/*.rs");
}

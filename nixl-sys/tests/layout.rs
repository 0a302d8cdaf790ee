//! The headers as a C compiler sees them: strict C11, and the measured layouts. The same layouts as Rust sees them are
//! asserted in the generated bindings.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "support/c.rs"]
mod c;

use std::path::Path;

use nixl_sys::bindings as b;

#[test]
fn a_c_compiler_agrees_with_the_measured_layouts() {
    let Some(mut compiler) = c::compiler() else { return };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/layout.c");
    c::run(compiler.arg("-fsyntax-only").arg(source));
}

#[test]
fn a_wrong_layout_does_not_compile() {
    let Some(mut compiler) = c::compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("wrong.c");
    let text = "#include \"nixl_capi.h\"\n_Static_assert(sizeof(nixl_capi_agent_config_t) == 32, \"wrong\");\n";
    std::fs::write(&source, text).unwrap();
    let output = compiler.arg("-fsyntax-only").arg(source).output().unwrap();
    assert!(!output.status.success(), "the assertion is not looked at");
}

#[test]
fn rust_has_the_same_numbers() {
    assert_eq!(size_of::<b::nixl_capi_agent_config_t>(), 40);
    assert_eq!(std::mem::offset_of!(b::nixl_capi_agent_config_t, pthr_delay_us), 16);
    assert_eq!(size_of::<b::nixl_capi_xfer_telemetry_s>(), 40);
    assert_eq!(b::nixl_capi_thread_sync_t::NIXL_CAPI_THREAD_SYNC_RW.0, 2);
    assert_eq!(b::nixl_capi_mem_type_t::NIXL_CAPI_MEM_VRAM.0, 1);
    assert_eq!(b::nixl_capi_status_t::NIXL_CAPI_ERROR_NOT_FOUND.code(), -6);
}

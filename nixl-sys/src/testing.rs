//! The gate of tests that need the real library.

use crate::Api;

/// The real NIXL, or `None` with `SKIPPED: why` printed. With `REQUIRE=nixl` (a comma-separated list) a missing NIXL
/// fails the test instead.
///
/// # Panics
///
/// When the environment requires NIXL and it cannot be loaded.
#[expect(clippy::print_stdout, clippy::panic, reason = "for tests only: this is how they report")]
pub fn require_nixl() -> Option<&'static Api> {
    let error = match Api::load(None) {
        Ok(api) => return Some(api),
        Err(error) => error,
    };
    let required = std::env::var_os("REQUIRE").unwrap_or_default();
    if required.to_string_lossy().split(',').any(|what| what.trim() == "nixl") {
        panic!("REQUIRE=nixl: {error}");
    }
    println!("SKIPPED: {error}");
    None
}

//! The wheel's library against the header: every name, the loader's findings, and a call.

use nixl_sys::bindings::Functions;

#[test]
fn the_library_that_setup_fetched_has_every_function() {
    let Some(api) = nixl_sys::testing::require_nixl() else { return };
    println!("{:?}", api.origin());
    assert_eq!(Functions::REQUIRED.len(), 96);
    assert_eq!(Functions::OPTIONAL.len(), 8);
    assert_eq!(api.optional_found(), 8);
}

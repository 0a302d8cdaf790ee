//! The agent on the real NIXL. Peers are processes of their own: this binary, started again with [`peer::ROLE`] set.
//!
//! Without a loadable NIXL these print `SKIPPED: why`, unless `REQUIRE` names `nixl`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, prints what it measured and watches the real clock"
)]

mod peer;
mod reads;

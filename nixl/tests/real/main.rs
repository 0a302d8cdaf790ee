//! The agent on the real NIXL. Peers are processes of their own: this binary, started again with [`peer::ROLE`] set.
//!
//! Without a loadable NIXL these print `SKIPPED: why`, unless `REQUIRE` names `nixl`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::exit,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, prints what it measured, watches the real clock; a peer ends without ado"
)]

mod broken;
mod in_flight;
mod load;
mod many;
mod peer;
mod reads;
#[path = "../../../tests/support/sockets.rs"]
mod sockets;
mod soundness;

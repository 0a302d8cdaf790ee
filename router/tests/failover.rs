//! What clients see of failures, how often the router tries again, and what becomes of P's blocks: one behaviour each.
//!
//! The fakes are those of `tests/router`.

#[path = "failover/client.rs"]
mod client;
#[path = "failover/decode.rs"]
mod decode;
#[expect(dead_code, reason = "some of it is for tests/router")]
#[path = "router/engines.rs"]
mod engines;
#[path = "router/journal.rs"]
#[expect(dead_code, reason = "some of it is for tests/router")]
mod journal;
#[path = "failover/limits.rs"]
mod limits;
#[path = "failover/prefill.rs"]
mod prefill;
#[path = "failover/sidecar.rs"]
mod sidecar;
#[path = "router/sidecars.rs"]
#[expect(dead_code, reason = "some of it is for tests/router")]
mod sidecars;
#[path = "failover/view.rs"]
mod view;
#[path = "router/world.rs"]
#[expect(dead_code, reason = "some of it is for tests/router")]
mod world;

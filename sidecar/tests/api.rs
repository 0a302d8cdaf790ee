//! Every endpoint of the sidecar's API against running sidecars: the process from its command line on, real sockets, real engines' protocol
//! (the embedded engine), memory copied inside this process. Each answer is held against `/openapi.json`.
#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the test rig fails by panicking"
)]

#[path = "api/codes.rs"]
mod codes;
#[path = "api/contract.rs"]
mod contract;
#[path = "api/every_endpoint.rs"]
mod every_endpoint;
#[path = "api/http.rs"]
mod http;
#[path = "http_edge/rig.rs"]
#[expect(dead_code, reason = "its other half is for tests/http_edge")]
mod rig;
#[path = "api/routes.rs"]
mod routes;
#[path = "api/schema.rs"]
mod schema;
#[path = "api/schemathesis.rs"]
mod schemathesis;
#[path = "api/world.rs"]
mod world;

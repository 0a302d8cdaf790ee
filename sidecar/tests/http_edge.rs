//! The sidecar's HTTP edge: over its router, over real sockets, as a process without NIXL.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "the test rig fails by panicking")]

#[path = "http_edge/connections.rs"]
mod connections;
#[path = "http_edge/digests.rs"]
mod digests;
#[path = "http_edge/events.rs"]
mod events;
#[path = "http_edge/landing.rs"]
mod landing;
#[path = "../../tests/support/metrics_doc.rs"]
mod metrics_doc;
#[path = "http_edge/probe.rs"]
mod probe;
#[path = "http_edge/process.rs"]
mod process;
#[path = "../../tests/support/promtool.rs"]
#[expect(dead_code, reason = "its other half is for tests/deploy")]
mod promtool;
#[path = "http_edge/refusals.rs"]
mod refusals;
#[path = "http_edge/rig.rs"]
mod rig;
#[path = "http_edge/timeline.rs"]
mod timeline;
#[path = "http_edge/views.rs"]
mod views;

//! The router against in-process fake engines and sidecars over real sockets on 127.0.0.1.

mod admission;
mod batches;
mod choosing;
mod edge;
#[expect(dead_code, reason = "some of it is for tests/failover.rs")]
mod engines;
mod gate;
mod journal;
mod kv_events;
mod ladder;
mod leaving;
#[path = "../../../tests/support/metrics_doc.rs"]
mod metrics_doc;
mod observed;
mod other_paths;
mod pass_through;
mod pod_local;
#[path = "../../../tests/support/promtool.rs"]
#[expect(dead_code, reason = "its other half is for tests/deploy")]
mod promtool;
mod sidecars;
mod staging;
mod traces;
#[expect(dead_code, reason = "some of it is for tests/failover.rs")]
mod world;

//! The core between made-up engines: over loopback memory and an in-process side channel, on paused time; and once on real NIXL.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "core/collection.rs"]
mod collection;
#[path = "core/doors.rs"]
mod doors;
#[path = "core/engine.rs"]
mod engine;
#[path = "core/gpus.rs"]
mod gpus;
#[path = "core/handles.rs"]
mod handles;
#[path = "core/landing.rs"]
mod landing;
#[path = "core/latency.rs"]
mod latency;
#[path = "core/limits.rs"]
mod limits;
#[path = "core/on_nixl.rs"]
mod on_nixl;
#[path = "core/parts.rs"]
mod parts;
#[path = "core/receipts.rs"]
mod receipts;
#[path = "core/refusals.rs"]
mod refusals;
#[path = "core/releases.rs"]
mod releases;
#[path = "../../tests/support/sockets.rs"]
mod sockets;
#[path = "core/sources.rs"]
mod sources;
#[path = "core/stalls.rs"]
mod stalls;
#[path = "core/storm.rs"]
mod storm;
#[path = "core/strangers.rs"]
mod strangers;
#[path = "core/trouble.rs"]
mod trouble;
#[path = "core/verify.rs"]
mod verify;
#[path = "core/world.rs"]
mod world;

//! Whole pods in one process: over the loopback fabric with paused time, and over real NIXL.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod faults;
mod http;
mod leases;
mod nixl;
mod rig;
mod texts;

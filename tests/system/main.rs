//! The real binary as real processes on loopback: exit codes, refusals, idle cost, and the demo with its controls.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod demo;
mod doctor;
mod exit_codes;
mod idle_cpu;
mod log_level;
mod process;
mod refusals;
mod top;

//! The real binary as real processes on loopback: exit codes, refusals, idle cost, the demo with its controls, and the page in a browser.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../support/authority.rs"]
mod authority;
mod browser;
mod chaos;
mod core_dumps;
mod debug_page;
mod demo;
mod deployed;
mod deployment;
mod discovery;
mod doctor;
mod drain;
mod exit_codes;
mod full_disk;
mod gateway;
mod gpu;
mod idle_cpu;
mod log_level;
mod mutual_tls;
#[path = "../support/otlp_receiver.rs"]
mod otlp_receiver;
mod overload;
mod process;
mod refusals;
mod released;
mod restarts;
mod secrets;
mod small_shm;
mod three_routers;
mod top;
mod traces;

//! The pure core of kvgate: decisions as functions from values to values. No I/O, no clock, no serde, no tokio.
//!
//! | module | is |
//! |---|---|
//! | [`ids`] | ranks, blocks, slots, engines, requests, transfers: one type each |
//! | [`blocks`] | which blocks hold one request's KV |
//! | [`layout`] | where a block lies and whether two caches can exchange blocks |
#![forbid(unsafe_code)]

pub mod blocks;
pub mod ids;
pub mod layout;

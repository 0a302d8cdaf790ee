//! The pure core of kvgate: decisions as functions from values to values. No I/O, no clock, no serde, no tokio.
//!
//! | module | is |
//! |---|---|
//! | [`ids`] | ranks, blocks, slots, engines, requests, transfers: one type each |
//! | [`blocks`] | which blocks hold one request's KV |
//! | [`layout`] | where a block lies and whether two caches can exchange blocks |
//! | [`shards`] | a set of TP shards |
//! | [`slots`] | the staging arena's allocator: fair waiting, quarantine |
//! | [`copy`] | blocks × layouts → merged byte ranges |
//! | [`digest`] | which blocks are compared with the source, and which bytes of them, and how |
//! | [`lease`] | how long a producer's blocks may be read |
//! | [`transfer`] | one pull from a prefill rank into staging |
//! | [`collect`] | from landed to freed |
//! | [`readiness`] | whether a rank can be given work, and why not |
//! | [`placement`] | which prefill and decode rank serve a request |
#![forbid(unsafe_code)]

pub mod blocks;
pub mod collect;
pub mod copy;
pub mod digest;
pub mod ids;
pub mod layout;
pub mod lease;
pub mod placement;
pub mod readiness;
pub mod shards;
pub mod slots;
#[cfg(test)]
mod testing;
pub mod transfer;

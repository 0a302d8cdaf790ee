//! The whole of kvgate in one thread and one clock: the real router and the real sidecars, over a simulated network and a
//! simulated NIXL, with faults from a seed. `make soak SEEDS=300` runs many seeds, `make soak SEED=17` one, with its events.
//!
//! Real: the router (its server edge, its HTTP client, the choice, the ladder, the gate), the sidecars (HTTP API, rank tasks,
//! staging, side channel in ZMTP), both as their processes run them. Embedded: the engines (`sim`, which speaks vLLM's HTTP and
//! side channel). Simulated: the network ([turmoil]), NIXL ([`fabric`]), time, and chance ([`entropy`]).
//!
//! | module | is |
//! |---|---|
//! | [`run`](mod@run) | one seed |
//! | [`plan`] | its faults |
//! | [`setup`] | its command lines |
//! | [`workload`], [`client`] | its requests, and what became of them |
//! | [`junk`] | what must be refused |
//! | [`hosts`], [`pods`] | who is there; their processes |
//! | [`net`], [`fabric`] | what lies between them |
//! | [`evidence`] | what happened, and what must not have |
//! | [`dice`], [`entropy`] | chance |
//! | [`children`], [`table`] | many seeds, each in a process of its own; the figures |
#![expect(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that goes on for hours: it ends by panicking"
)]

pub mod children;
pub mod client;
pub mod dice;
#[path = "../../../router/tests/passthrough/edits.rs"]
mod edits;
pub mod entropy;
pub mod evidence;
pub mod fabric;
pub mod hosts;
pub mod junk;
#[path = "../../../router/tests/passthrough/members.rs"]
mod members;
pub mod net;
pub mod plan;
pub mod pods;
pub mod run;
pub mod setup;
pub mod table;
pub mod workload;

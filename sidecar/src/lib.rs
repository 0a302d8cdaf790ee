//! The daemon beside a vLLM pod: rank watchers, staging, transfers, HTTP API.
//!
//! | module | is |
//! |---|---|
//! | [`model`] | the plain data that core and edge exchange |
//! | [`pod`] | the core's face: all ranks of one pod |
//! | `rank` | one rank's task: it owns slots, transfers and what has landed |
//! | `watcher`, `session` | the engine's pages; one start of an engine and what is built on it |
//! | [`gpus`] | the GPUs that staging may be on |
//! | `staging`, `virtual_engine`, `peers` | the arenas; what D reads from; what we read from |
//! | [`digest`] | digests of blocks: taken of the own engine, asked of P's sidecar |
//! | [`engine_http`] | the engine's HTTP pages |
//! | [`fabrics`] | where NIXL agents come from |
//! | [`config`], [`faults`] | the command line |
//! | [`quiet`] | whether the engine may end |
//! | [`mod@run`], [`lifecycle`] | one process, from start to end |
//! | `spans` | a transfer's record as spans |
//! | [`http`], [`problem`], [`events`] | the HTTP API |
//! | [`peer_allow`] | whom a request may make this sidecar connect to |
//! | [`peer_book`] | what is known of remote engines, for operators |
//! | [`latency`], [`transport`] | where transfers spend their time and why; what UCX moves bytes by |
//! | [`metrics`], [`receipt_log`] | what is kept on record |
#![forbid(unsafe_code)]

mod agents;
pub mod config;
pub mod digest;
pub mod engine_http;
pub mod events;
pub mod fabrics;
pub mod faults;
pub mod gpus;
pub mod http;
pub mod latency;
pub mod lifecycle;
pub mod metrics;
pub mod model;
pub mod peer_allow;
pub mod peer_book;
mod peers;
pub mod pod;
pub mod problem;
pub mod quiet;
mod rank;
pub mod receipt_log;
pub mod run;
mod session;
mod spans;
mod staging;
pub mod transport;
mod virtual_engine;
mod watcher;

pub use run::{RunError, run};

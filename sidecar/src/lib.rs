//! The daemon beside a vLLM pod: rank watchers, staging, transfers, HTTP API.
//!
//! | module | is |
//! |---|---|
//! | [`model`] | the plain data that core and edge exchange |
//! | [`pod`] | the core's face: all ranks of one pod |
//! | `rank` | one rank's task: it owns slots, transfers and what has landed |
//! | `watcher`, `session` | the engine's pages; one start of an engine and what is built on it |
//! | `staging`, `virtual_engine`, `peers` | the arenas; what D reads from; what we read from |
//! | [`engine_http`] | the engine's HTTP pages |
//! | [`fabrics`] | where NIXL agents come from |
//! | [`config`], [`faults`] | the command line |
//! | [`mod@run`], [`lifecycle`] | one process, from start to end |
//! | [`http`], [`auth`], [`problem`], [`events`] | the HTTP API |
//! | [`metrics`], [`receipt_log`] | what is kept on record |
#![forbid(unsafe_code)]

pub mod auth;
pub mod config;
pub mod engine_http;
pub mod events;
pub mod fabrics;
pub mod faults;
pub mod http;
pub mod lifecycle;
pub mod metrics;
pub mod model;
mod peers;
pub mod pod;
pub mod problem;
mod rank;
pub mod receipt_log;
pub mod run;
mod session;
mod staging;
mod virtual_engine;
mod watcher;

pub use run::{RunError, run};

//! The daemon beside a vLLM pod: rank watchers, staging, transfers, HTTP API.
//!
//! | module | is |
//! |---|---|
//! | [`model`] | the plain data that core and edge exchange |
//! | [`pod`] | the core's face: all ranks of one pod |
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
pub mod pod;
pub mod problem;
pub mod receipt_log;
pub mod run;

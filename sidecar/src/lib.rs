//! The daemon beside a vLLM pod: rank watchers, staging, transfers, HTTP API.
//!
//! | module | is |
//! |---|---|
//! | [`model`] | the plain data that core and edge exchange |
//! | [`pod`] | the core's face: all ranks of one pod |
//! | [`engine_http`] | the engine's HTTP pages |
//! | [`fabrics`] | where NIXL agents come from |
#![forbid(unsafe_code)]

pub mod engine_http;
pub mod fabrics;
pub mod model;
pub mod pod;

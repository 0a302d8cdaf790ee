//! The embedded engine: vLLM's HTTP and side channel over real NIXL memory, without a model.
//!
//! A prompt's KV bytes are a keyed function of its tokens; the generated text is a function of the KV bytes that lie in the
//! engine's memory. So a decode that pulled the wrong bytes, too early or too late, says something else than an engine that
//! computed the prompt itself. Behaviour is vLLM 0.32's as `docs/vllm-nixl-protocol.md` has it.
//!
//! | module | is |
//! |---|---|
//! | [`config`] | the command line |
//! | [`run`](mod@run) | a pod over real NIXL and sockets |
//! | [`pod`] | its ranks put together |
//! | [`seams`] | what tests put in NIXL's and the sockets' place |
//! | [`fault`] | what goes wrong on purpose |
//! | [`geometry`] | sizes and places of blocks |
//! | [`kv_bytes`] | what the bytes of a block are |
//! | [`arena`] | a rank's memory: fill and digest |
//! | [`words`] | text from a digest |
//! | [`pool`] | free, held and shared blocks |
//! | [`pins`] | blocks kept for a reader, leases |
//! | [`scheduler`] | the owner of pool and pins |
//! | [`engine`] | a request's way through one rank |
//! | [`load`] | the pull of a decode rank |
//! | [`peers`] | handshakes with the engines that it pulls from |
//! | [`heartbeat`] | keeping their leases |
//! | [`identity`] | what a rank says about itself |
//! | [`listener`] | its side channel |
//! | [`http`] | the HTTP surface |
//! | [`stats`] | what `/metrics` counts |
//! | [`request_log`] | evidence, one line per request |
//! | [`wall`] | the wall clock |
#![forbid(unsafe_code)]

pub mod arena;
pub mod config;
pub mod engine;
pub mod fault;
pub mod geometry;
pub mod heartbeat;
pub mod http;
pub mod identity;
pub mod kv_bytes;
pub mod listener;
pub mod load;
pub mod peers;
pub mod pins;
pub mod pod;
pub mod pool;
pub mod request_log;
pub mod run;
pub mod scheduler;
pub mod seams;
pub mod stats;
pub mod wall;
pub mod words;

pub use run::{RunError, run};

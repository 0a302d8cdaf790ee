//! vLLM's formats on the wire, without I/O. Facts: `docs/vllm-nixl-protocol.md`, measured on vLLM 0.32.0; how other releases
//! differ: [`versions`].
//!
//! | module | is |
//! |---|---|
//! | [`params`] | `kv_transfer_params`, what a prefill hands over |
//! | [`body`] | reading and editing OpenAI request bodies as raw bytes; a prefill's answer |
//! | [`handshake`] | the side channel's messages |
//! | [`hash`] | the compatibility hash |
//! | [`notif`] | NIXL notifications: "read" and heartbeats |
//! | [`headers`] | HTTP header names |
//! | [`kv_events`] | what an engine says about its prefix cache |
//! | [`metrics`] | what we read from `/metrics` |
//! | [`versions`] | which vLLM releases we know, and how they differ |
//! | [`openai`] | error bodies and error events |
#![forbid(unsafe_code)]

pub mod body;
pub mod handshake;
pub mod hash;
pub mod headers;
pub mod kv_events;
pub mod metrics;
mod msgpack;
pub mod notif;
pub mod openai;
pub mod params;
pub mod versions;

//! What the fuzzer runs (`fuzz/`, `make fuzz`) and a plain test replays (`tests/corpus.rs`, `make test`): one function for each reader of bytes that
//! others send.
//!
//! For any input: no panic, memory within a bound that grows with the input, and what was understood, written down and read again is the same.
#![expect(clippy::expect_used, reason = "a target fails by panicking")]
#![forbid(unsafe_code)]

mod addresses;
mod bodies;
mod config;
mod handshakes;
mod memory;
mod params;
mod streams;

pub use addresses::addresses;
pub use bodies::{answers, bodies};
pub use config::config_file;
pub use handshakes::{agent_metadata, kv_events, side_channel_reply, side_channel_request};
pub use params::{kv_transfer_params, notifications};
pub use streams::{metrics, server_sent_events};

/// A target's name, which is that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 12] = [
    ("side_channel_request", side_channel_request),
    ("side_channel_reply", side_channel_reply),
    ("agent_metadata", agent_metadata),
    ("kv_events", kv_events),
    ("kv_transfer_params", kv_transfer_params),
    ("notifications", notifications),
    ("bodies", bodies),
    ("answers", answers),
    ("server_sent_events", server_sent_events),
    ("metrics", metrics),
    ("config_file", config_file),
    ("addresses", addresses),
];

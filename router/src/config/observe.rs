//! What operators and clients are shown.

use clap::{ArgAction, Args};

use super::{ConfigError, range};

/// A record takes about a kilobyte.
const MAX_RECORDS: u32 = 1 << 20;

/// Flags of observability.
#[derive(Clone, Debug, Args)]
pub struct ObserveArgs {
    /// Tell clients which ranks served them and how long each part took (X-KVGate-Prefill, -Decode, -Transfer …, Server-Timing).
    #[arg(long, env = "KVGATE_DEBUG_HEADERS", action = ArgAction::SetTrue)]
    pub debug_headers: bool,

    /// How many ended requests /v1/requests knows; 0 for none.
    #[arg(long, env = "KVGATE_REQUEST_RECORDS", value_name = "N", default_value_t = 2048)]
    pub request_records: u32,

    /// Show vllm-router's metric names too, where they mean the same; their worker label holds engines' URLs.
    #[arg(long, env = "KVGATE_PEER_METRICS", action = ArgAction::SetTrue)]
    pub peer_metrics: bool,
}

/// [`ObserveArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name in `ObserveArgs`")]
pub struct Observe {
    pub debug_headers: bool,
    pub request_records: u32,
    pub peer_metrics: bool,
}

impl ObserveArgs {
    pub(super) fn check(&self) -> Result<Observe, ConfigError> {
        range(self.request_records <= MAX_RECORDS, "--request-records", "at most 1048576")?;
        Ok(Observe {
            debug_headers: self.debug_headers,
            request_records: self.request_records,
            peer_metrics: self.peer_metrics,
        })
    }
}

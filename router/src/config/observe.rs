//! What operators and clients are shown.

use std::time::Duration;

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

    /// Tell P's sidecar (GET /v1/handles) of blocks that a prefill has left pinned once they have been so for this long; most are read
    /// sooner. 0: of all of them, which costs two more requests to the sidecar for each prefill.
    #[arg(long, env = "KVGATE_REPORT_HANDLES_AFTER_MS", value_name = "MS", default_value_t = 50)]
    pub report_handles_after_ms: u64,

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
    pub report_handles_after: Duration,
}

impl ObserveArgs {
    pub(super) fn check(&self) -> Result<Observe, ConfigError> {
        range(self.report_handles_after_ms <= 60_000, "--report-handles-after-ms", "at most 60000 (a minute)")?;
        range(self.request_records <= MAX_RECORDS, "--request-records", "at most 1048576")?;
        Ok(Observe {
            debug_headers: self.debug_headers,
            request_records: self.request_records,
            peer_metrics: self.peer_metrics,
            report_handles_after: Duration::from_millis(self.report_handles_after_ms),
        })
    }
}

//! HTTP headers that vLLM reads, in lower case as the `http` crate wants them.

/// Chooses the DP rank that serves a request. Anything but an integer is silently ignored (protocol doc §5).
pub const DP_RANK: &str = "x-data-parallel-rank";

/// The request id; vLLM makes its own of it, `cmpl-{id}-0-<8 hex>` (protocol doc §4.5).
pub const REQUEST_ID: &str = "x-request-id";

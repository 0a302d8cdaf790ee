//! How long each step may take.

use std::time::Duration;

use clap::Args;

use super::{ConfigError, duration, range};

/// Flags of the waits.
#[derive(Clone, Debug, Args)]
pub struct DeadlineArgs {
    /// Longest wait for P's answer.
    #[arg(long, env = "KVGATE_PREFILL_DEADLINE_MS", value_name = "MS", default_value_t = 120_000)]
    pub prefill_deadline_ms: u64,

    /// Longest wait for a receipt; sent to the sidecar as deadline_ms.
    #[arg(long, env = "KVGATE_TRANSFER_DEADLINE_MS", value_name = "MS", default_value_t = 15_000)]
    pub transfer_deadline_ms: u64,

    /// Longest wait for a TCP connection to an engine or a sidecar.
    #[arg(long, env = "KVGATE_CONNECT_DEADLINE_MS", value_name = "MS", default_value_t = 5_000)]
    pub connect_deadline_ms: u64,

    /// Longest wait for D's first byte (all of the answer, when not streaming), per attempt.
    #[arg(long, env = "KVGATE_DECODE_DEADLINE_MS", value_name = "MS", default_value_t = 600_000)]
    pub decode_deadline_ms: u64,

    /// Longest silence of D between two pieces of its answer; how long an answer takes in all is not limited.
    #[arg(long, env = "KVGATE_IDLE_DEADLINE_MS", value_name = "MS", default_value_t = 300_000)]
    pub idle_deadline_ms: u64,

    /// Longest time from a request's arrival to the first byte of its answer, over all attempts; 0 for no limit.
    #[arg(long, env = "KVGATE_REQUEST_DEADLINE_MS", value_name = "MS", default_value_t = 1_800_000)]
    pub request_deadline_ms: u64,

    /// While a stream's first event is not there, send a comment this often to keep proxies from hanging up; 0 for never.
    /// With the first comment the status 200 is sent: from then on errors come as events, and without x-kvgate headers.
    #[arg(long, env = "KVGATE_SSE_KEEPALIVE_MS", value_name = "MS", default_value_t = 0)]
    pub sse_keepalive_ms: u64,

    /// Longest wait for the client's body, and for a place among the requests in flight.
    #[arg(long, env = "KVGATE_QUEUE_DEADLINE_MS", value_name = "MS", default_value_t = 30_000)]
    pub queue_deadline_ms: u64,

    /// Longest that a client may take no bytes of its answer.
    #[arg(long, env = "KVGATE_CLIENT_DEADLINE_MS", value_name = "MS", default_value_t = 120_000)]
    pub client_deadline_ms: u64,

    /// P's lease on finished blocks (vLLM's kv_lease_duration; it is not on the wire), as 30, 30s or 30000ms.
    #[arg(long, env = "KVGATE_KV_LEASE", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub kv_lease: Duration,
}

/// [`DeadlineArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct Deadlines {
    pub prefill: Duration,
    pub transfer: Duration,
    pub decode: Duration,
    pub connect: Duration,
    pub idle: Duration,
    pub request: Option<Duration>,
    pub sse_keepalive: Option<Duration>,
    pub queue: Duration,
    pub client: Duration,
    pub kv_lease: Duration,
}

impl DeadlineArgs {
    pub(super) fn check(&self) -> Result<Deadlines, ConfigError> {
        range(!self.kv_lease.is_zero(), "--kv-lease", "longer than 0")?;
        for (flag, value) in [
            ("--prefill-deadline-ms", self.prefill_deadline_ms),
            ("--transfer-deadline-ms", self.transfer_deadline_ms),
            ("--decode-deadline-ms", self.decode_deadline_ms),
            ("--connect-deadline-ms", self.connect_deadline_ms),
            ("--idle-deadline-ms", self.idle_deadline_ms),
            ("--queue-deadline-ms", self.queue_deadline_ms),
            ("--client-deadline-ms", self.client_deadline_ms),
        ] {
            range((1..=86_400_000).contains(&value), flag, "between 1 ms and one day")?;
        }
        let or_never = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        for (flag, value) in
            [("--request-deadline-ms", self.request_deadline_ms), ("--sse-keepalive-ms", self.sse_keepalive_ms)]
        {
            range(value <= 86_400_000, flag, "at most one day")?;
        }
        Ok(Deadlines {
            prefill: Duration::from_millis(self.prefill_deadline_ms),
            transfer: Duration::from_millis(self.transfer_deadline_ms),
            decode: Duration::from_millis(self.decode_deadline_ms),
            connect: Duration::from_millis(self.connect_deadline_ms),
            idle: Duration::from_millis(self.idle_deadline_ms),
            request: or_never(self.request_deadline_ms),
            sse_keepalive: or_never(self.sse_keepalive_ms),
            queue: Duration::from_millis(self.queue_deadline_ms),
            client: Duration::from_millis(self.client_deadline_ms),
            kv_lease: self.kv_lease,
        })
    }
}

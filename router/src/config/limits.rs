//! How much at once.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use vllm_wire::body::MAX_BODY;

use super::{ConfigError, range};
use crate::keys::{Keys, Rate};

/// Flags of the bounds.
#[derive(Clone, Debug, Args)]
pub struct LimitArgs {
    /// Requests worked on at once.
    #[arg(long, env = "KVGATE_MAX_IN_FLIGHT", value_name = "N", default_value_t = 1024)]
    pub max_in_flight: u32,

    /// Requests taken per second over all keys, as a token bucket; more are answered 429. No limit unless given.
    #[arg(long, env = "KVGATE_RATE_LIMIT_REQUESTS_PER_SECOND", value_name = "N")]
    pub rate_limit_requests_per_second: Option<NonZeroU32>,

    /// Requests that may come at once after a quiet time, when a rate is given; one second's worth unless given.
    #[arg(long, env = "KVGATE_RATE_LIMIT_BURST", value_name = "N")]
    pub rate_limit_burst: Option<NonZeroU32>,

    /// File with the clients' API keys, a line each: `sha256:HEX [name=…] [rate=N] [burst=N] [concurrency=N] [priority=N] [admin]`.
    /// Changes of the file hold within seconds.
    #[arg(long, env = "KVGATE_API_KEYS_FILE", value_name = "FILE")]
    pub api_keys_file: Option<PathBuf>,

    /// Requests waiting beyond those; more are answered 429.
    #[arg(long, env = "KVGATE_MAX_QUEUE", value_name = "N", default_value_t = 1024)]
    pub max_queue: u32,

    /// Largest request body in bytes; larger ones are answered 413.
    #[arg(long, env = "KVGATE_MAX_BODY_BYTES", value_name = "BYTES", default_value_t = 16 << 20)]
    pub max_body_bytes: u32,

    /// All request bodies together while their answers have not begun, in bytes; a request beyond is answered 429.
    #[arg(long, env = "KVGATE_MAX_BODIES_BYTES", value_name = "BYTES", default_value_t = 1 << 30)]
    pub max_bodies_bytes: u64,
}

/// [`LimitArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct Limits {
    pub max_in_flight: u32,
    pub max_queue: u32,
    pub rate: Option<Rate>,
    pub keys: Option<Arc<Keys>>,
    pub api_keys_file: Option<PathBuf>,
    pub max_body_bytes: u32,
    pub max_bodies_bytes: u64,
}

impl LimitArgs {
    pub(super) fn check(&self) -> Result<Limits, ConfigError> {
        range(self.max_in_flight > 0, "--max-in-flight", "at least 1")?;
        let largest = u32::try_from(MAX_BODY).unwrap_or(u32::MAX);
        range((1..=largest).contains(&self.max_body_bytes), "--max-body-bytes", "between 1 and 134217728 (128 MiB)")?;
        range(
            self.max_bodies_bytes >= u64::from(self.max_body_bytes),
            "--max-bodies-bytes",
            "at least --max-body-bytes",
        )?;
        let burst = self.rate_limit_burst;
        let rate = self.rate_limit_requests_per_second;
        range(burst.is_none() || rate.is_some(), "--rate-limit-burst", "given with --rate-limit-requests-per-second")?;
        Ok(Limits {
            rate: rate.map(|rate| Rate { per_second: rate, burst: burst.unwrap_or(rate) }),
            keys: self.api_keys_file.as_deref().map(read_keys).transpose()?.map(Arc::new),
            api_keys_file: self.api_keys_file.clone(),
            max_in_flight: self.max_in_flight,
            max_queue: self.max_queue,
            max_body_bytes: self.max_body_bytes,
            max_bodies_bytes: self.max_bodies_bytes,
        })
    }
}

fn read_keys(path: &Path) -> Result<Keys, ConfigError> {
    Keys::from_file(path).map_err(|source| ConfigError::Keys { path: path.to_owned(), source })
}

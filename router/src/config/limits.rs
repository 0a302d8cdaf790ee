//! How much at once.

use clap::Args;
use vllm_wire::body::MAX_BODY;

use super::{ConfigError, range};

/// Flags of the bounds.
#[derive(Clone, Debug, Args)]
pub struct LimitArgs {
    /// Requests worked on at once.
    #[arg(long, env = "KVGATE_MAX_IN_FLIGHT", value_name = "N", default_value_t = 1024)]
    pub max_in_flight: u32,

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
        Ok(Limits {
            max_in_flight: self.max_in_flight,
            max_queue: self.max_queue,
            max_body_bytes: self.max_body_bytes,
            max_bodies_bytes: self.max_bodies_bytes,
        })
    }
}

//! What happens after a failure.

use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use super::{ConfigError, range};
use crate::breaker::Tuning;
use crate::faults::{Fault, Faults};

/// What happens when prefill/decode has failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FallbackKind {
    /// The client gets the error.
    Off,
    /// One decode engine does the whole request, marked `x-kvgate-path: fallback`.
    LocalPrefill,
}

/// Flags of the failure ladder.
#[derive(Clone, Debug, Args)]
pub struct FailureArgs {
    /// Tries per request over all steps of the failure ladder.
    #[arg(long, env = "KVGATE_MAX_ATTEMPTS", value_name = "N", default_value_t = 4)]
    pub max_attempts: u32,

    /// Retries of all requests together, in percent of the requests; beyond it (and --retry-floor) a failure is final.
    #[arg(long, env = "KVGATE_RETRY_BUDGET", value_name = "PERCENT", default_value_t = 20)]
    pub retry_budget: u32,

    /// Retries per second that are always allowed, however few requests there are; unused ones are kept for 10 seconds.
    #[arg(long, env = "KVGATE_RETRY_FLOOR", value_name = "N", default_value_t = 20)]
    pub retry_floor: u32,

    /// Wait before a request tries a rank for the second time; a try on another rank never waits.
    #[arg(long, env = "KVGATE_RETRY_INITIAL_BACKOFF_MS", value_name = "MS", default_value_t = 50)]
    pub retry_initial_backoff_ms: u64,

    /// Longest such wait.
    #[arg(long, env = "KVGATE_RETRY_MAX_BACKOFF_MS", value_name = "MS", default_value_t = 2_000)]
    pub retry_max_backoff_ms: u64,

    /// How much longer each further wait of a request is.
    #[arg(long, env = "KVGATE_RETRY_BACKOFF_MULTIPLIER", value_name = "FACTOR", default_value_t = 1.5)]
    pub retry_backoff_multiplier: f64,

    /// How much longer or shorter than planned a wait may be by chance, as a share of it.
    #[arg(long, env = "KVGATE_RETRY_JITTER_FACTOR", value_name = "SHARE", default_value_t = 0.2)]
    pub retry_jitter_factor: f64,

    /// What happens when prefill/decode has failed for good.
    #[arg(long, env = "KVGATE_FALLBACK", value_enum, default_value_t = FallbackKind::Off)]
    pub fallback: FallbackKind,

    /// Failures in a row after which a rank gets no requests for a while; a pod, after twice as many from all its ranks, or when it
    /// could not be reached twice in a row.
    #[arg(long, env = "KVGATE_CB_FAILURE_THRESHOLD", value_name = "N", default_value_t = 5)]
    pub cb_failure_threshold: u32,

    /// Requests in a row that must go well, one at a time, before it gets all of its share again.
    #[arg(long, env = "KVGATE_CB_SUCCESS_THRESHOLD", value_name = "N", default_value_t = 1)]
    pub cb_success_threshold: u32,

    /// The longest time that a rank is left alone; the first time it is a second, then twice as long after each failure.
    #[arg(long, env = "KVGATE_CB_TIMEOUT_DURATION_SECS", value_name = "SECONDS", default_value_t = 30)]
    pub cb_timeout_duration_secs: u32,

    /// Failures further apart than this are not in a row.
    #[arg(long, env = "KVGATE_CB_WINDOW_DURATION_SECS", value_name = "SECONDS", default_value_t = 60)]
    pub cb_window_duration_secs: u32,

    /// Never leave a rank alone because of failures.
    #[arg(long, env = "KVGATE_DISABLE_CIRCUIT_BREAKER", action = ArgAction::SetTrue)]
    pub disable_circuit_breaker: bool,

    /// Injected faults, for controls and tests.
    #[arg(long, env = "KVGATE_FAULT", value_name = "NAME[=MS]", value_delimiter = ' ', hide = true)]
    pub fault: Vec<Fault>,
}

/// [`FailureArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct Failure {
    pub max_attempts: u32,
    pub retry_budget: u32,
    pub retry_floor: u32,
    pub backoff: Backoff,
    pub fallback: FallbackKind,
    pub faults: Arc<Faults>,
    pub(crate) breaker: Tuning,
}

/// How long to wait before a rank is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first wait.
    pub initial: Duration,
    /// The longest.
    pub most: Duration,
    /// How much longer each further one is.
    pub multiplier: f64,
    /// The share by which chance changes it.
    pub jitter: f64,
}

impl FailureArgs {
    pub(super) fn check(&self) -> Result<Failure, ConfigError> {
        range(self.max_attempts > 0, "--max-attempts", "at least 1")?;
        range(self.retry_budget <= 1000, "--retry-budget", "at most 1000 percent")?;
        range(self.retry_floor <= 1_000_000, "--retry-floor", "at most 1000000")?;
        range(self.retry_initial_backoff_ms <= 60_000, "--retry-initial-backoff-ms", "at most a minute")?;
        range(self.retry_max_backoff_ms <= 60_000, "--retry-max-backoff-ms", "at most a minute")?;
        range((1.0..=10.0).contains(&self.retry_backoff_multiplier), "--retry-backoff-multiplier", "between 1 and 10")?;
        range((0.0..=1.0).contains(&self.retry_jitter_factor), "--retry-jitter-factor", "between 0 and 1")?;
        range(self.cb_failure_threshold > 0, "--cb-failure-threshold", "at least 1")?;
        range(self.cb_success_threshold > 0, "--cb-success-threshold", "at least 1")?;
        range(self.cb_timeout_duration_secs > 0, "--cb-timeout-duration-secs", "at least 1")?;
        Ok(Failure {
            max_attempts: self.max_attempts,
            retry_budget: self.retry_budget,
            retry_floor: self.retry_floor,
            backoff: Backoff {
                initial: Duration::from_millis(self.retry_initial_backoff_ms),
                most: Duration::from_millis(self.retry_max_backoff_ms),
                multiplier: self.retry_backoff_multiplier,
                jitter: self.retry_jitter_factor,
            },
            fallback: self.fallback,
            faults: Arc::new(Faults::new(&self.fault)),
            breaker: self.breaker(),
        })
    }

    fn breaker(&self) -> Tuning {
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
        let failures = if self.disable_circuit_breaker { Tuning::NEVER } else { self.cb_failure_threshold };
        let (longest, window) = (seconds(self.cb_timeout_duration_secs), seconds(self.cb_window_duration_secs));
        Tuning::new(failures, self.cb_success_threshold, longest, window)
    }
}

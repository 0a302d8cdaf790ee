//! What happens after a failure.

use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::{ConfigError, range};
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

    /// What happens when prefill/decode has failed for good.
    #[arg(long, env = "KVGATE_FALLBACK", value_enum, default_value_t = FallbackKind::Off)]
    pub fallback: FallbackKind,

    /// Injected faults, for controls and tests.
    #[arg(long, env = "KVGATE_FAULT", value_name = "NAME[=MS]", value_delimiter = ' ', hide = true)]
    pub fault: Vec<Fault>,
}

/// [`FailureArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct Failure {
    pub max_attempts: u32,
    pub fallback: FallbackKind,
    pub faults: Arc<Faults>,
}

impl FailureArgs {
    pub(super) fn check(&self) -> Result<Failure, ConfigError> {
        range(self.max_attempts > 0, "--max-attempts", "at least 1")?;
        Ok(Failure {
            max_attempts: self.max_attempts,
            fallback: self.fallback,
            faults: Arc::new(Faults::new(&self.fault)),
        })
    }
}

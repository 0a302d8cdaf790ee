//! What operators and clients are shown.

use clap::Args;

use super::ConfigError;

/// Flags of observability.
#[derive(Clone, Debug, Args)]
pub struct ObserveArgs {}

/// [`ObserveArgs`], checked.
#[derive(Clone, Debug)]
pub struct Observe {}

impl ObserveArgs {
    pub(super) fn check(&self) -> Result<Observe, ConfigError> {
        Ok(Observe {})
    }
}

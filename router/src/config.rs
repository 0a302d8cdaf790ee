//! The router's command line, and the [`RouterConfig`] that it becomes once every value has been checked.
//!
//! One module per group of flags: its `…Args` (what clap reads) and the checked values of the same name.

pub mod choice;
pub mod command_line;
pub mod deadlines;
pub mod discovery;
pub mod failure;
pub mod limits;
pub mod listen;
pub mod observe;
pub mod paths;
pub mod pod_local;
mod pod_url;
pub mod targets;

use std::path::PathBuf;
use std::time::Duration;

use secrets::TokenError;
use secrets::tls::TlsError;

pub use choice::{Direct, Gate, GateKind, Pairing};
pub use failure::FallbackKind;
pub use pod_url::{PodUrl, PodUrlError, Scheme};

/// `kvgate router`'s arguments. Every flag is also read from the environment as `KVGATE_…`.
#[derive(Clone, Debug, clap::Args)]
#[expect(missing_docs, reason = "each field is the group of the same name")]
pub struct Args {
    #[command(flatten)]
    pub targets: targets::TargetArgs,
    #[command(flatten)]
    pub discovery: discovery::DiscoveryArgs,
    #[command(flatten)]
    pub pod_local: pod_local::PodLocalArgs,
    #[command(flatten)]
    pub listen: listen::ListenArgs,
    #[command(flatten)]
    pub choice: choice::ChoiceArgs,
    #[command(flatten)]
    pub deadlines: deadlines::DeadlineArgs,
    #[command(flatten)]
    pub failure: failure::FailureArgs,
    #[command(flatten)]
    pub limits: limits::LimitArgs,
    #[command(flatten)]
    pub observe: observe::ObserveArgs,
    #[command(flatten)]
    pub paths: paths::PathArgs,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A number outside of what makes sense.
    #[error("{flag} must be {wanted}")]
    Range {
        /// The flag.
        flag: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// The same engine is named twice.
    #[error("{0} is named twice; every --prefill and --decode engine must be another one")]
    Repeated(http::Uri),
    /// A token file cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// TLS cannot be spoken as wanted.
    #[error("set up TLS")]
    Tls(#[from] TlsError),
    /// A server that nobody knows how to trust.
    #[error("{0} is https: give --upstream-ca with the authority that signs its certificate")]
    NoAuthority(String),
    /// The file of API keys cannot be used.
    #[error("read the API keys from {path}", path = path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: crate::keys::KeysError,
    },
}

/// The configuration after all checks.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the group of the same name in `Args`")]
pub struct RouterConfig {
    pub targets: targets::Targets,
    pub discovery: discovery::Discovery,
    /// Where a gateway says who prefills.
    pub pod_local: Option<pod_local::PodLocal>,
    pub listen: listen::Listen,
    pub choice: choice::Choice,
    pub deadlines: deadlines::Deadlines,
    pub failure: failure::Failure,
    pub limits: limits::Limits,
    pub observe: observe::Observe,
    pub paths: paths::Paths,
}

impl RouterConfig {
    /// A sidecar that stands for more than one pod, which no sidecar can do: it knows the ranks of its own.
    pub(crate) fn shared_sidecar(&self) -> Option<&http::Uri> {
        let gated = matches!(self.choice.gate, Gate::Stage);
        let pods = || self.targets.prefill.iter().chain(&self.targets.decode);
        let count = |sidecar: &http::Uri| pods().filter(|pod| pod.sidecar == *sidecar).count();
        pods().map(|pod| &pod.sidecar).filter(|_| gated).find(|sidecar| count(sidecar) > 1)
    }
}

impl Args {
    /// Checks what clap cannot check for one flag alone.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub fn check(&self) -> Result<RouterConfig, ConfigError> {
        let pod_local = self.pod_local.check(&self.discovery)?;
        let discovery = self.discovery.check(pod_local.is_some())?;
        let targets = self.targets.check(discovery.finds(), pod_local.as_ref())?;
        self.check_schemes(&discovery, pod_local.as_ref(), &targets)?;
        Ok(RouterConfig {
            targets,
            discovery,
            listen: self.listen.check(pod_local.is_some())?,
            pod_local,
            choice: self.choice.check()?,
            deadlines: self.deadlines.check()?,
            failure: self.failure.check()?,
            limits: self.limits.check()?,
            observe: self.observe.check()?,
            paths: self.paths.check()?,
        })
    }

    /// How pods are asked that no URL names.
    fn check_schemes(
        &self,
        discovery: &discovery::Discovery,
        pod_local: Option<&pod_local::PodLocal>,
        targets: &targets::Targets,
    ) -> Result<(), ConfigError> {
        let engines = self.discovery.engine_discovery_scheme;
        let unnamed = discovery.finds() || pod_local.is_some_and(|pod| !pod.allow.is_empty());
        let without_effect =
            "given with --service-discovery or --prefill-allow only: named pods are asked as their URLs say";
        range(unnamed || engines == Scheme::Http, "--engine-discovery-scheme", without_effect)?;
        let schemes = [("--engine-discovery-scheme", engines), ("--sidecar-scheme", targets.sidecar_scheme)];
        let https = schemes.into_iter().find(|(_, scheme)| unnamed && *scheme == Scheme::Https);
        match (https, &targets.upstream) {
            (Some((flag, _)), None) => Err(ConfigError::NoAuthority(flag.to_owned())),
            (Some(_) | None, _) => Ok(()),
        }
    }
}

/// For the checks of the groups.
pub(crate) fn range(ok: bool, flag: &'static str, wanted: &'static str) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError::Range { flag, wanted }) }
}

/// Reads 30, 30s or 30000ms.
pub(crate) fn duration(text: &str) -> Result<Duration, DurationError> {
    let (number, milliseconds) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').unwrap_or(text), 1000),
    };
    let number: u64 = number.trim().parse().map_err(|_| DurationError)?;
    number.checked_mul(milliseconds).filter(|ms| *ms <= 86_400_000).map(Duration::from_millis).ok_or(DurationError)
}

#[derive(Debug, thiserror::Error)]
#[error("expected seconds or milliseconds of at most one day, like 30, 30s or 30000ms")]
pub(crate) struct DurationError;

#[cfg(test)]
mod tests;

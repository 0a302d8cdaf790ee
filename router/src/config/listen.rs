//! Where clients come in, and how serving ends.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{ConfigError, duration};

/// Flags of the listening side.
#[derive(Clone, Debug, Args)]
pub struct ListenArgs {
    // Not KVGATE_HOST and KVGATE_PORT: Kubernetes sets KVGATE_PORT=tcp://… in every pod beside a Service named kvgate.
    /// The address to listen on.
    #[arg(long, env = "KVGATE_LISTEN_HOST", default_value = "127.0.0.1")]
    pub host: String,

    /// The port to listen on; 0 takes any free one (see --ports-file).
    #[arg(long, env = "KVGATE_LISTEN_PORT", default_value_t = 10001)]
    pub port: u16,

    /// After SIGTERM, how long requests in flight may go on, as 30, 30s or 30000ms.
    #[arg(long, env = "KVGATE_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,

    /// Where to write the port as JSON once the router can be talked to.
    #[arg(long, env = "KVGATE_PORTS_FILE", value_name = "FILE")]
    pub ports_file: Option<PathBuf>,
}

/// [`ListenArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct Listen {
    pub host: String,
    pub port: u16,
    pub drain_timeout: Duration,
    pub ports_file: Option<PathBuf>,
}

impl ListenArgs {
    pub(super) fn check(&self) -> Result<Listen, ConfigError> {
        Ok(Listen {
            host: self.host.clone(),
            port: self.port,
            drain_timeout: self.drain_timeout,
            ports_file: self.ports_file.clone(),
        })
    }
}

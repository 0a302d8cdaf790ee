//! Where clients come in, and how serving ends.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use secrets::Tokens;
use secrets::tls::{Server, ServerArgs};

use super::{ConfigError, duration, range};

/// The port of a router that serves a deployment.
const PORT: u16 = 10_001;
/// The port of one in a decode pod: where llm-d's gateways send.
const POD_LOCAL_PORT: u16 = 8000;

/// Flags of the listening side.
#[derive(Clone, Debug, Args)]
pub struct ListenArgs {
    // Not KVGATE_HOST and KVGATE_PORT: Kubernetes sets KVGATE_PORT=tcp://… in every pod beside a Service named kvgate.
    /// The address to listen on.
    #[arg(long, env = "KVGATE_LISTEN_HOST", default_value = "127.0.0.1")]
    pub host: String,

    /// The port to listen on, 10001 unless given (with --pod-local 8000); 0 takes any free one (see --ports-file).
    #[arg(long, env = "KVGATE_LISTEN_PORT")]
    pub port: Option<u16>,

    /// The address of the listener for operators (see --admin-port).
    #[arg(long, env = "KVGATE_ADMIN_LISTEN_HOST", default_value = "127.0.0.1")]
    pub admin_host: String,

    /// Another port, for operators only: /metrics, /readyz with addresses, /v1/workers and /v1/requests. Off unless given.
    #[arg(long, env = "KVGATE_ADMIN_LISTEN_PORT", value_name = "PORT")]
    pub admin_port: Option<u16>,

    /// File with the token of operators, or several, one a line: with one, what they ask works on the client port too. Read again when it changes.
    #[arg(long, env = "KVGATE_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// What both listeners show and ask for.
    #[command(flatten)]
    pub tls: ServerArgs,

    /// Connections open at once; further ones wait in the system's backlog.
    #[arg(long, env = "KVGATE_MAX_CONNECTIONS", value_name = "N", default_value_t = 16_384)]
    pub max_connections: u32,

    /// Longest wait for the whole head of a request, from its first byte (of a connection's first request, from the start).
    #[arg(long, env = "KVGATE_HEADER_DEADLINE_MS", value_name = "MS", default_value_t = 15_000)]
    pub header_deadline_ms: u64,

    /// How long a connection may stay open between two requests, as 30, 30s or 30000ms.
    #[arg(long, env = "KVGATE_IDLE_TIMEOUT", value_name = "DURATION", default_value = "120s", value_parser = duration)]
    pub idle_timeout: Duration,

    /// Largest head of a request in bytes; larger ones are answered 431.
    #[arg(long, env = "KVGATE_MAX_HEADER_BYTES", value_name = "BYTES", default_value_t = 64 << 10)]
    pub max_header_bytes: u32,

    /// Most headers of a request; more are answered 431.
    #[arg(long, env = "KVGATE_MAX_HEADERS", value_name = "N", default_value_t = 100)]
    pub max_headers: u32,

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
    pub admin_host: String,
    pub admin_port: Option<u16>,
    pub admin_tokens: Option<Arc<Tokens>>,
    pub tls: Option<Arc<Server>>,
    pub max_connections: u32,
    pub header_deadline: Duration,
    pub idle_timeout: Duration,
    pub max_header_bytes: u32,
    pub max_headers: u32,
    pub drain_timeout: Duration,
    pub ports_file: Option<PathBuf>,
}

impl Listen {
    /// Whether nobody comes in without a certificate.
    pub(crate) fn is_mutual(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_mutual())
    }

    /// Whether only this machine can reach the clients' listener.
    pub(crate) fn is_loopback(&self) -> bool {
        let literal = self.host.trim_matches(['[', ']']).parse::<IpAddr>();
        literal.map_or(self.host == "localhost", |address| address.is_loopback())
    }
}

impl ListenArgs {
    pub(super) fn check(&self, pod_local: bool) -> Result<Listen, ConfigError> {
        range(self.max_connections > 0, "--max-connections", "at least 1")?;
        range((1..=86_400_000).contains(&self.header_deadline_ms), "--header-deadline-ms", "between 1 ms and one day")?;
        range(!self.idle_timeout.is_zero(), "--idle-timeout", "longer than 0")?;
        range((8192..=1 << 20).contains(&self.max_header_bytes), "--max-header-bytes", "between 8192 and 1048576")?;
        range((1..=4096).contains(&self.max_headers), "--max-headers", "between 1 and 4096")?;
        Ok(Listen {
            admin_host: self.admin_host.clone(),
            admin_port: self.admin_port,
            admin_tokens: self.admin_token_file.as_deref().map(Tokens::from_file).transpose()?,
            tls: self.tls.check()?,
            max_connections: self.max_connections,
            header_deadline: Duration::from_millis(self.header_deadline_ms),
            idle_timeout: self.idle_timeout,
            max_header_bytes: self.max_header_bytes,
            max_headers: self.max_headers,
            host: self.host.clone(),
            port: self.port.unwrap_or(if pod_local { POD_LOCAL_PORT } else { PORT }),
            drain_timeout: self.drain_timeout,
            ports_file: self.ports_file.clone(),
        })
    }
}

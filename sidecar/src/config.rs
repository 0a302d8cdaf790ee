//! The sidecar's command line, and what it becomes once checked.
//!
//! Every flag is also read from `KVGATE_<FLAG>`. Nothing else in this crate reads the environment.

pub(crate) mod parse;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args as ClapArgs, ValueEnum};
use kv::digest::Verify;
use secrets::tls::{Client, ClientArgs, Server, ServerArgs, TlsError};
use secrets::{TokenError, Tokens};
use side_channel::Endpoint;
use thiserror::Error;

use crate::faults::{self, Fault};
use crate::model::{PodConfig, Role, StagingKind};
use crate::peer_allow::{Entry, PeerAllow};

/// vLLM's own default for the side channel of its global rank 0.
const VLLM_SIDE_CHANNEL_PORT: u16 = 5600;

/// Runs the daemon beside one vLLM pod.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// What the pod's engines do: produce KV (prefill) or collect it (decode)
    #[arg(long, env = "KVGATE_ROLE", value_enum)]
    pub role: RoleArg,
    /// The engine's HTTP address, http://HOST:PORT or https://HOST:PORT
    #[arg(long, env = "KVGATE_ENGINE", value_name = "URL", value_parser = parse::engine_url)]
    pub engine: http::Uri,
    /// The engine's side channel: the port is that of global rank 0 [default: the engine's host, port 5600]
    #[arg(long, env = "KVGATE_ENGINE_SIDE_CHANNEL", value_name = "HOST:PORT_BASE")]
    pub engine_side_channel: Option<Endpoint>,
    /// Data-parallel ranks in this pod
    #[arg(long, env = "KVGATE_DATA_PARALLEL_SIZE", value_name = "N", default_value_t = 1)]
    pub data_parallel_size: u16,
    /// Tensor-parallel shards of each rank (P and D must be equal)
    #[arg(long, env = "KVGATE_TENSOR_PARALLEL_SIZE", value_name = "T", default_value_t = 1)]
    pub tensor_parallel_size: u16,
    /// The global number of this pod's first rank
    #[arg(long, env = "KVGATE_RANK_OFFSET", value_name = "R", default_value_t = 0)]
    pub rank_offset: u16,
    /// Where the HTTP API listens; port 0 takes a free one. Not loopback: needs --token-file, --tls-client-ca or --insecure
    #[arg(long, env = "KVGATE_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:7700")]
    pub listen: SocketAddr,
    /// Where the virtual prefill engine of local rank 0 listens (rank n: port + n); port 0 takes free ones
    #[arg(long, env = "KVGATE_SIDE_CHANNEL_LISTEN", value_name = "HOST:PORT_BASE", default_value = "127.0.0.1:7800")]
    pub side_channel_listen: Endpoint,
    /// The host by which the decode engine reaches the virtual prefill engine
    #[arg(long, env = "KVGATE_ADVERTISE_HOST", value_name = "HOST", default_value = "127.0.0.1")]
    pub advertise_host: String,
    /// Where staging arenas lie; pinned and vram take a CUDA driver, which is looked for before anything else
    #[arg(long, env = "KVGATE_STAGING", value_enum, default_value_t = StagingArg::Dram)]
    pub staging: StagingArg,
    /// GPUs for --staging pinned or vram, as this process counts them: one for all, or one for each TP shard of each local rank in turn
    /// [default: the one that each engine says its cache is on]
    #[arg(long, env = "KVGATE_GPUS", value_name = "N,N,…", value_delimiter = ',')]
    pub gpus: Vec<u32>,
    /// Bytes of staging per rank, over all its TP shards, as in 512MiB
    #[arg(long, env = "KVGATE_STAGING_BYTES", value_name = "PER_RANK", default_value = "2GiB", value_parser = parse::size)]
    pub staging_bytes: u64,
    /// How long a transfer waits in line for staging
    #[arg(long, env = "KVGATE_STAGING_WAIT_MS", value_name = "MS", default_value_t = 2000)]
    pub staging_wait_ms: u64,
    /// The prefill engines' lease on finished blocks (it is not on the wire)
    #[arg(long, env = "KVGATE_KV_LEASE", value_name = "TIME", default_value = "30s", value_parser = parse::duration)]
    pub kv_lease: Duration,
    /// Compare what lands with digests that the prefill pod's sidecar takes: of K blocks of each transfer, or of all
    #[arg(long, env = "KVGATE_VERIFY", value_name = "off|sample:K|full", default_value = "off", value_parser = parse::verify)]
    pub verify: Verify,
    /// Zero staging slots when they are freed
    #[arg(long, env = "KVGATE_ZERO_ON_RELEASE", value_parser = BoolishValueParser::new())]
    pub zero_on_release: bool,
    /// Peers that a request may make this sidecar connect to, comma separated: CIDR or NAME, with ports, as 10.0.0.0/8:5600-5607; their sidecars' port
    /// too for --verify [default: any address from port 1024 up that is not link-local, nor loopback unless --listen is]
    #[arg(long, env = "KVGATE_PEER_ALLOW", value_name = "CIDR[:PORT[-PORT]]", value_delimiter = ',')]
    pub peer_allow: Vec<Entry>,
    /// A file with the bearer token that clients must present; read again when it changes, may hold several (one a line) during a change
    #[arg(long, env = "KVGATE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Serve an address that is not loopback without a token and without asking for certificates
    #[arg(long, env = "KVGATE_INSECURE", value_parser = BoolishValueParser::new())]
    pub insecure: bool,
    /// What the HTTP API shows and asks for.
    #[command(flatten)]
    pub tls: ServerArgs,
    /// What https:// engines and sidecars are asked with.
    #[command(flatten)]
    pub upstream: ClientArgs,
    /// Connections of the HTTP API open at once; further ones are refused (/livez and /readyz are answered)
    #[arg(long, env = "KVGATE_MAX_CONNECTIONS", value_name = "N", default_value_t = 4096)]
    pub max_connections: u32,
    /// Append one JSON line per receipt, before it is answered; a second one, "withdrawn", if it is not after all
    #[arg(long, env = "KVGATE_RECEIPT_LOG", value_name = "FILE")]
    pub receipt_log: Option<PathBuf>,
    /// Write the ports that were bound, once the process can be talked to
    #[arg(long, env = "KVGATE_PORTS_FILE", value_name = "FILE")]
    pub ports_file: Option<PathBuf>,
    /// The NIXL C library, or the folder that holds it, instead of searching for one
    #[arg(long, env = "KVGATE_NIXL_LIBRARY", value_name = "PATH")]
    pub nixl_library: Option<PathBuf>,
    /// Check the flags and the files that they name, and end: with 0, or with 64 and what is wrong
    #[arg(long)]
    pub check_config: bool,
    /// Go wrong on purpose: corrupt-staging, zero-staging, hold-pull=MS, no-heartbeat, slow-wire=MS@PORT
    #[arg(long = "fault", env = "KVGATE_FAULT", value_name = "NAME[=MS[@PORT]]", hide = true, value_delimiter = ',')]
    pub faults: Vec<Fault>,
}

/// `--role`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RoleArg {
    /// Produces KV.
    Prefill,
    /// Collects KV.
    Decode,
}

/// `--staging`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum StagingArg {
    /// Host memory.
    Dram,
    /// Page-locked host memory.
    Pinned,
    /// GPU memory.
    Vram,
}

/// The command line, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the core is told.
    pub pod: PodConfig,
    /// Where the HTTP API listens.
    pub listen: SocketAddr,
    /// Connections of the HTTP API that may be open at once.
    pub max_connections: u32,
    /// The tokens of which clients must present one, when there are any.
    pub token: Option<Arc<Tokens>>,
    /// The TLS that the HTTP API speaks.
    pub tls: Option<Arc<Server>>,
    /// The TLS that https:// engines and sidecars are asked with.
    pub upstream: Option<Arc<Client>>,
    /// Where receipts are put on record.
    pub receipt_log: Option<PathBuf>,
    /// Where the bound ports are written.
    pub ports_file: Option<PathBuf>,
    /// The NIXL library or its folder, when it is not to be searched for.
    pub nixl_library: Option<PathBuf>,
    /// Faults that are on, for the warning at start.
    pub faults: Vec<Fault>,
}

/// A command line that cannot be run: exit code 64.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The API would be open to the network.
    #[error(
        "--listen {0} is not a loopback address: give --token-file FILE, --tls-client-ca FILE, or --insecure if the network is trusted"
    )]
    OpenToTheNetwork(SocketAddr),
    /// A size of zero.
    #[error("--{flag} must be at least 1")]
    Zero {
        /// The flag's name, without dashes.
        flag: &'static str,
    },
    /// Ports or ranks run over the end of their numbers.
    #[error("--{flag} {first} leaves no room for {count} ranks: the last one would be above 65535")]
    OutOfNumbers {
        /// The flag's name, without dashes.
        flag: &'static str,
        /// The first number.
        first: u16,
        /// How many are needed from there.
        count: u16,
    },
    /// GPUs for staging that is on none.
    #[error("--gpus is for --staging pinned or vram")]
    GpusUnused,
    /// Neither one GPU for all nor one for each shard.
    #[error(
        "--gpus names {given} GPUs: give one for all, or {needed}, one for each TP shard of each local rank in turn"
    )]
    Gpus {
        /// As many were named.
        given: usize,
        /// Local ranks times TP shards.
        needed: usize,
    },
    /// A host that cannot be sent to an engine.
    #[error("--advertise-host {0:?} is not a host name or an IP address")]
    AdvertiseHost(String),
    /// An address that nobody can be sent to.
    #[error(
        "--advertise-host {0} is every address and none: give the one by which the decode engine reaches this sidecar"
    )]
    AdvertiseNowhere(String),
    /// A lease too short to be kept alive.
    #[error("--kv-lease must be between 1s and 24h; vLLM's own default is 30s")]
    Lease,
    /// A wait in line that outlives every request.
    #[error("--staging-wait-ms must be at most 600000 (ten minutes)")]
    StagingWait,
    /// The token file is of no use.
    #[error("use the token of --token-file")]
    Token(#[from] TokenError),
    /// TLS cannot be spoken as wanted.
    #[error("set up TLS")]
    Tls(#[from] TlsError),
    /// An engine that nobody knows how to trust.
    #[error("--engine is https: give --upstream-ca with the authority that signs its certificate")]
    EngineAuthority,
}

/// `off`, `sample:K` or `full`, for whoever passes `--verify` on.
///
/// # Errors
/// What it must be.
pub fn checked_verify(text: &str) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    Ok(parse::verify_word(parse::verify(text)?))
}

/// Bytes, or binary multiples of them, as `--staging-bytes` takes them, for whoever looks at the same variable.
///
/// # Errors
/// What it must be.
pub fn checked_size(text: &str) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    Ok(parse::size(text)?)
}

impl Args {
    /// Checks the flags against each other and reads the token.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let token = self.token_file.as_deref().map(Tokens::from_file).transpose()?;
        let (tls, upstream) = (self.tls.check()?, self.upstream.check()?);
        let guarded = token.is_some() || tls.as_ref().is_some_and(|tls| tls.is_mutual());
        if !self.listen.ip().is_loopback() && !guarded && !self.insecure {
            return Err(ConfigError::OpenToTheNetwork(self.listen));
        }
        if upstream.is_none() && self.engine.scheme() == Some(&http::uri::Scheme::HTTPS) {
            return Err(ConfigError::EngineAuthority);
        }
        Ok(Settings {
            pod: self.pod()?,
            listen: self.listen,
            max_connections: self.max_connections,
            token,
            tls,
            upstream,
            receipt_log: self.receipt_log.clone(),
            ports_file: self.ports_file.clone(),
            nixl_library: self.nixl_library.clone(),
            faults: self.faults.clone(),
        })
    }

    fn pod(&self) -> Result<PodConfig, ConfigError> {
        self.check_numbers()?;
        let host = &self.advertise_host;
        if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b)) {
            return Err(ConfigError::AdvertiseHost(host.clone()));
        }
        if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
            return Err(ConfigError::AdvertiseNowhere(host.clone()));
        }
        Ok(PodConfig {
            role: self.role.into(),
            engine: self.engine.clone(),
            engine_side_channel: self.engine_side_channel(),
            side_channel_listen: self.side_channel_listen.clone(),
            advertise_host: host.clone(),
            dp_size: self.data_parallel_size,
            tp_size: self.tensor_parallel_size,
            rank_offset: self.rank_offset,
            staging: self.staging.into(),
            gpus: self.gpus()?,
            staging_bytes: self.staging_bytes,
            staging_wait: Duration::from_millis(self.staging_wait_ms),
            kv_lease: self.kv_lease,
            verify: self.verify,
            zero_on_release: self.zero_on_release,
            peers: self.peers(),
            faults: faults::fold(&self.faults),
        })
    }

    fn peers(&self) -> PeerAllow {
        if self.peer_allow.is_empty() {
            PeerAllow::Usual { loopback: self.listen.ip().is_loopback() }
        } else {
            PeerAllow::Only(self.peer_allow.clone())
        }
    }

    fn engine_side_channel(&self) -> Endpoint {
        self.engine_side_channel.clone().unwrap_or_else(|| {
            // An endpoint holds an IPv6 address without the brackets that it has in a URL.
            let host = self.engine.host().unwrap_or("127.0.0.1").trim_matches(['[', ']']);
            Endpoint::new(host, VLLM_SIDE_CHANNEL_PORT)
        })
    }

    fn gpus(&self) -> Result<Vec<u32>, ConfigError> {
        let needed = usize::from(self.data_parallel_size).saturating_mul(usize::from(self.tensor_parallel_size));
        match self.gpus.len() {
            0 => {}
            _ if !StagingKind::from(self.staging).needs_gpu() => return Err(ConfigError::GpusUnused),
            given if given != 1 && given != needed => return Err(ConfigError::Gpus { given, needed }),
            _ => {}
        }
        Ok(self.gpus.clone())
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("data-parallel-size", u64::from(self.data_parallel_size)),
            ("tensor-parallel-size", u64::from(self.tensor_parallel_size)),
            ("staging-bytes", self.staging_bytes),
            ("max-connections", u64::from(self.max_connections)),
        ];
        if let Some((flag, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(ConfigError::Zero { flag });
        }
        let count = self.data_parallel_size;
        let ends = self.rank_offset.saturating_add(count);
        let runs = [
            ("rank-offset", self.rank_offset, count),
            ("engine-side-channel", self.engine_side_channel().port, ends),
            ("side-channel-listen", self.side_channel_listen.port, count),
        ];
        let too_far = |first: u16, count: u16| u32::from(first) + u32::from(count) > u32::from(u16::MAX) + 1;
        if let Some((flag, first, count)) = runs.into_iter().find(|(_, first, count)| too_far(*first, *count)) {
            return Err(ConfigError::OutOfNumbers { flag, first, count });
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(24 * 3600)).contains(&self.kv_lease) {
            return Err(ConfigError::Lease);
        }
        if self.staging_wait_ms > 600_000 {
            return Err(ConfigError::StagingWait);
        }
        Ok(())
    }
}

impl From<StagingArg> for StagingKind {
    fn from(staging: StagingArg) -> Self {
        match staging {
            StagingArg::Dram => Self::Dram,
            StagingArg::Pinned => Self::Pinned,
            StagingArg::Vram => Self::Vram,
        }
    }
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Prefill => Self::Prefill,
            RoleArg::Decode => Self::Decode,
        }
    }
}

#[cfg(test)]
mod tests;

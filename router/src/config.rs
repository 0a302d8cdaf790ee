//! The router's command line, and the [`RouterConfig`] that it becomes once every value has been checked.

mod pod_url;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args as ClapArgs, ValueEnum};
use vllm_wire::body::MAX_BODY;

pub use pod_url::{PodUrl, PodUrlError};

use crate::faults::{Fault, Faults};

/// Ranks that one `--prefill` or `--decode` URL may stand for; far above any pod that exists.
const MAX_RANKS_PER_POD: u16 = 1024;

/// What stands between a prefill and its decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GateKind {
    /// Decode waits for the receipt of D's sidecar.
    Stage,
    /// P's parameters go straight to D, as other routers do: the baseline.
    Direct,
}

/// Which decode rank may follow a prefill rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pairing {
    /// The rank of the same global number.
    Same,
    /// Any rank.
    Any,
}

/// What happens when prefill/decode has failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FallbackKind {
    /// The client gets the error.
    Off,
    /// One decode engine does the whole request, marked `x-kvgate-path: fallback`.
    LocalPrefill,
}

/// `kvgate router`'s arguments. Every flag is also read from the environment as `KVGATE_…`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Split prefill and decode. The only mode there is; accepted so that existing command lines work.
    #[arg(long, env = "KVGATE_PD_DISAGGREGATION", action = ArgAction::SetTrue)]
    pub pd_disaggregation: bool,

    /// A prefill engine, repeatable; its sidecar is http://HOST:7700 of the same host unless `,sidecar=URL` follows.
    #[arg(long, env = "KVGATE_PREFILL", value_name = "URL[,sidecar=URL]", value_delimiter = ' ', required = true)]
    pub prefill: Vec<PodUrl>,

    /// A decode engine, repeatable; its sidecar is http://HOST:7700 of the same host unless `,sidecar=URL` follows.
    #[arg(long, env = "KVGATE_DECODE", value_name = "URL[,sidecar=URL]", value_delimiter = ' ', required = true)]
    pub decode: Vec<PodUrl>,

    /// DP ranks behind each URL: URL@0 … URL@N-1.
    #[arg(long, env = "KVGATE_INTRA_NODE_DATA_PARALLEL_SIZE", value_name = "N", default_value_t = 1)]
    pub intra_node_data_parallel_size: u16,

    // Not KVGATE_HOST and KVGATE_PORT: Kubernetes sets KVGATE_PORT=tcp://… in every pod beside a Service named kvgate.
    /// The address to listen on.
    #[arg(long, env = "KVGATE_LISTEN_HOST", default_value = "127.0.0.1")]
    pub host: String,

    /// The port to listen on; 0 takes any free one (see --ports-file).
    #[arg(long, env = "KVGATE_LISTEN_PORT", default_value_t = 10001)]
    pub port: u16,

    /// Wait for the receipt (stage) or send P's parameters straight to D (direct, the baseline).
    #[arg(long, env = "KVGATE_GATE", value_enum, default_value_t = GateKind::Stage)]
    pub gate: GateKind,

    /// Which decode rank may follow a prefill rank.
    #[arg(long, env = "KVGATE_RANK_PAIRING", value_enum, default_value_t = Pairing::Same)]
    pub rank_pairing: Pairing,

    /// Let clients choose ranks with X-data-parallel-rank (decode) and X-KVGate-Prefill-Rank.
    #[arg(long, env = "KVGATE_ALLOW_RANK_HEADERS", action = ArgAction::SetTrue)]
    pub allow_rank_headers: bool,

    /// Longest wait for P's answer.
    #[arg(long, env = "KVGATE_PREFILL_DEADLINE_MS", value_name = "MS", default_value_t = 120_000)]
    pub prefill_deadline_ms: u64,

    /// Longest wait for a receipt; sent to the sidecar as deadline_ms.
    #[arg(long, env = "KVGATE_TRANSFER_DEADLINE_MS", value_name = "MS", default_value_t = 15_000)]
    pub transfer_deadline_ms: u64,

    /// Longest silence of D, before its first byte (all of the answer, when not streaming) and between later ones.
    #[arg(long, env = "KVGATE_DECODE_DEADLINE_MS", value_name = "MS", default_value_t = 600_000)]
    pub decode_deadline_ms: u64,

    /// Longest wait for the client's body, and for a place among the requests in flight.
    #[arg(long, env = "KVGATE_QUEUE_DEADLINE_MS", value_name = "MS", default_value_t = 30_000)]
    pub queue_deadline_ms: u64,

    /// Longest that a client may take no bytes of its answer.
    #[arg(long, env = "KVGATE_CLIENT_DEADLINE_MS", value_name = "MS", default_value_t = 120_000)]
    pub client_deadline_ms: u64,

    /// P's lease on finished blocks (vLLM's kv_lease_duration; it is not on the wire), as 30, 30s or 30000ms.
    #[arg(long, env = "KVGATE_KV_LEASE", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub kv_lease: Duration,

    /// File with the bearer token of the sidecars.
    #[arg(long, env = "KVGATE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

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

    /// Tries per request over all steps of the failure ladder.
    #[arg(long, env = "KVGATE_MAX_ATTEMPTS", value_name = "N", default_value_t = 4)]
    pub max_attempts: u32,

    /// What happens when prefill/decode has failed for good.
    #[arg(long, env = "KVGATE_FALLBACK", value_enum, default_value_t = FallbackKind::Off)]
    pub fallback: FallbackKind,

    /// After SIGTERM, how long requests in flight may go on, as 30, 30s or 30000ms.
    #[arg(long, env = "KVGATE_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,

    /// Where to write the port as JSON once the router can be talked to.
    #[arg(long, env = "KVGATE_PORTS_FILE", value_name = "FILE")]
    pub ports_file: Option<PathBuf>,

    /// Injected faults, for controls and tests.
    #[arg(long, env = "KVGATE_FAULT", value_name = "NAME[=MS]", value_delimiter = ' ', hide = true)]
    pub fault: Vec<Fault>,
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
    /// The token file cannot be used.
    #[error("read the sidecars' token from {path}", path = path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: TokenError,
    },
}

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("the file cannot be read")]
    Read(#[from] std::io::Error),
    /// It holds nothing, or bytes that cannot stand in a header.
    #[error("the file must hold one line of visible ASCII characters")]
    Form(#[from] http::header::InvalidHeaderValue),
}

/// Proof that the operator chose the direct gate; made in this module only.
#[derive(Clone, Copy, Debug)]
pub struct Direct(());

/// The gate with the proof that P's own parameters may go to D, if so configured.
#[derive(Clone, Copy, Debug)]
pub enum Gate {
    /// Decode waits for a receipt.
    Stage,
    /// Decode goes ahead.
    Direct(Direct),
}

/// The configuration after all checks.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name in `Args`")]
pub struct RouterConfig {
    pub prefill: Vec<PodUrl>,
    pub decode: Vec<PodUrl>,
    pub ranks_per_pod: u16,
    pub gate: Gate,
    pub pairing: Pairing,
    pub allow_rank_headers: bool,
    pub prefill_deadline: Duration,
    pub transfer_deadline: Duration,
    pub decode_deadline: Duration,
    pub queue_deadline: Duration,
    pub client_deadline: Duration,
    pub kv_lease: Duration,
    pub sidecar_authorization: Option<http::HeaderValue>,
    pub max_in_flight: u32,
    pub max_queue: u32,
    pub max_body_bytes: u32,
    pub max_bodies_bytes: u64,
    pub max_attempts: u32,
    pub fallback: FallbackKind,
    pub drain_timeout: Duration,
    pub faults: Arc<Faults>,
}

impl RouterConfig {
    /// A sidecar that stands for more than one pod, which no sidecar can do: it knows the ranks of its own.
    pub(crate) fn shared_sidecar(&self) -> Option<&http::Uri> {
        let gated = matches!(self.gate, Gate::Stage);
        let mut all = self.prefill.iter().chain(&self.decode).map(|pod| &pod.sidecar).filter(|_| gated);
        let count =
            |sidecar: &http::Uri| self.prefill.iter().chain(&self.decode).filter(|pod| pod.sidecar == *sidecar).count();
        all.find(|sidecar| count(sidecar) > 1)
    }
}

impl Args {
    /// Checks what clap cannot check for one flag alone.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub fn check(&self) -> Result<RouterConfig, ConfigError> {
        let range = |ok: bool, flag, wanted| if ok { Ok(()) } else { Err(ConfigError::Range { flag, wanted }) };
        let ranks = self.intra_node_data_parallel_size;
        range((1..=MAX_RANKS_PER_POD).contains(&ranks), "--intra-node-data-parallel-size", "between 1 and 1024")?;
        range(self.max_in_flight > 0, "--max-in-flight", "at least 1")?;
        range(self.max_attempts > 0, "--max-attempts", "at least 1")?;
        let largest = u32::try_from(MAX_BODY).unwrap_or(u32::MAX);
        range((1..=largest).contains(&self.max_body_bytes), "--max-body-bytes", "between 1 and 67108864 (64 MiB)")?;
        range(
            self.max_bodies_bytes >= u64::from(self.max_body_bytes),
            "--max-bodies-bytes",
            "at least --max-body-bytes",
        )?;
        range(!self.kv_lease.is_zero(), "--kv-lease", "longer than 0")?;
        for (flag, value) in [
            ("--prefill-deadline-ms", self.prefill_deadline_ms),
            ("--transfer-deadline-ms", self.transfer_deadline_ms),
            ("--decode-deadline-ms", self.decode_deadline_ms),
            ("--queue-deadline-ms", self.queue_deadline_ms),
            ("--client-deadline-ms", self.client_deadline_ms),
        ] {
            range((1..=86_400_000).contains(&value), flag, "between 1 ms and one day")?;
        }
        range(!self.prefill.is_empty(), "--prefill", "given at least once")?;
        range(!self.decode.is_empty(), "--decode", "given at least once")?;
        for pods in [&self.prefill, &self.decode] {
            for (n, pod) in pods.iter().enumerate() {
                if pods.iter().take(n).any(|other| other.engine == pod.engine) {
                    return Err(ConfigError::Repeated(pod.engine.clone()));
                }
            }
        }
        Ok(RouterConfig {
            prefill: self.prefill.clone(),
            decode: self.decode.clone(),
            ranks_per_pod: ranks,
            gate: match self.gate {
                GateKind::Stage => Gate::Stage,
                GateKind::Direct => Gate::Direct(Direct(())),
            },
            pairing: self.rank_pairing,
            allow_rank_headers: self.allow_rank_headers,
            prefill_deadline: Duration::from_millis(self.prefill_deadline_ms),
            transfer_deadline: Duration::from_millis(self.transfer_deadline_ms),
            decode_deadline: Duration::from_millis(self.decode_deadline_ms),
            queue_deadline: Duration::from_millis(self.queue_deadline_ms),
            client_deadline: Duration::from_millis(self.client_deadline_ms),
            kv_lease: self.kv_lease,
            sidecar_authorization: self.token_file.as_ref().map(read_token).transpose()?,
            max_in_flight: self.max_in_flight,
            max_queue: self.max_queue,
            max_body_bytes: self.max_body_bytes,
            max_bodies_bytes: self.max_bodies_bytes,
            max_attempts: self.max_attempts,
            fallback: self.fallback,
            drain_timeout: self.drain_timeout,
            faults: Arc::new(Faults::new(&self.fault)),
        })
    }
}

fn read_token(path: &PathBuf) -> Result<http::HeaderValue, ConfigError> {
    let read = || -> Result<http::HeaderValue, TokenError> {
        let text = std::fs::read_to_string(path)?;
        let token = text.trim();
        // An empty token would make a header that no sidecar accepts; a newline stands for "not a token" in the parser below.
        let token = if token.is_empty() { "\n" } else { token };
        let mut value = http::HeaderValue::from_str(&format!("Bearer {token}"))?;
        value.set_sensitive(true);
        Ok(value)
    };
    read().map_err(|source| ConfigError::Token { path: path.clone(), source })
}

fn duration(text: &str) -> Result<Duration, DurationError> {
    let (number, milliseconds) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').unwrap_or(text), 1000),
    };
    let number: u64 = number.trim().parse().map_err(|_| DurationError)?;
    number.checked_mul(milliseconds).filter(|ms| *ms <= 86_400_000).map(Duration::from_millis).ok_or(DurationError)
}

#[derive(Debug, thiserror::Error)]
#[error("expected seconds or milliseconds of at most one day, like 30, 30s or 30000ms")]
struct DurationError;

#[cfg(test)]
mod tests;

//! Which pods there are.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::{ArgAction, Args};

use secrets::Tokens;
use secrets::tls::{Client, ClientArgs};

use super::pod_local::PodLocal;
use super::{ConfigError, PodUrl, PodUrlError, Scheme, range};
use crate::targets::Side;

/// Ranks that one `--prefill` or `--decode` URL may stand for; far above any pod that exists.
const MAX_RANKS_PER_POD: u16 = 1024;

/// Flags that name the pods.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// Split prefill and decode. The only mode there is; accepted so that existing command lines work.
    #[arg(long, env = "KVGATE_PD_DISAGGREGATION", action = ArgAction::SetTrue)]
    pub pd_disaggregation: bool,

    /// A prefill engine, repeatable; its sidecar is port 7700 of the same host unless `,sidecar=URL` follows.
    ///
    /// A bootstrap port after the URL, as vllm-router takes it, has no effect: NIXL needs none.
    #[arg(long, env = "KVGATE_PREFILL", value_name = "URL[,sidecar=URL]", value_delimiter = ' ', num_args = 1..)]
    pub prefill: Vec<PrefillUrl>,

    /// A decode engine, repeatable (with --pod-local: this pod's own, http://127.0.0.1:8200 unless given); its sidecar is port 7700 of the same host unless `,sidecar=URL` follows.
    #[arg(long, env = "KVGATE_DECODE", value_name = "URL[,sidecar=URL]", value_delimiter = ' ')]
    pub decode: Vec<PodUrl>,

    /// DP ranks behind each URL: URL@0 … URL@N-1.
    #[arg(long, env = "KVGATE_INTRA_NODE_DATA_PARALLEL_SIZE", value_name = "N", default_value_t = 1)]
    pub intra_node_data_parallel_size: u16,

    /// DP ranks behind each --prefill URL, where the sides differ.
    #[arg(long, env = "KVGATE_PREFILL_DATA_PARALLEL_SIZE", value_name = "N")]
    pub prefill_data_parallel_size: Option<u16>,

    /// DP ranks behind each --decode URL, where the sides differ.
    #[arg(long, env = "KVGATE_DECODE_DATA_PARALLEL_SIZE", value_name = "N")]
    pub decode_data_parallel_size: Option<u16>,

    /// How sidecars are reached whose URL nothing tells: those of engines without `,sidecar=URL`, and discovered ones.
    #[arg(long, env = "KVGATE_SIDECAR_SCHEME", value_enum, default_value_t = Scheme::Http)]
    pub sidecar_scheme: Scheme,

    /// What https:// engines and sidecars are asked with.
    #[command(flatten)]
    pub upstream: ClientArgs,

    /// File with the API key that the engines want, read again when it changes; without it each client's own Authorization goes to them.
    #[arg(long, env = "KVGATE_ENGINE_API_KEY_FILE", value_name = "FILE", conflicts_with = "api_key")]
    pub engine_api_key_file: Option<PathBuf>,

    /// The engines' API key itself, which everybody on the machine can read here: better --engine-api-key-file.
    #[arg(long, env = "KVGATE_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<Secret>,

    /// File with the bearer token of the sidecars (the first line, if there are several); read again when it changes.
    #[arg(long, env = "KVGATE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// [`TargetArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct Targets {
    pub prefill: Vec<PodUrl>,
    pub decode: Vec<PodUrl>,
    pub prefill_ranks: u16,
    pub decode_ranks: u16,
    pub engine_tokens: Option<Arc<Tokens>>,
    pub sidecar_tokens: Option<Arc<Tokens>>,
    pub sidecar_scheme: Scheme,
    pub upstream: Option<Arc<Client>>,
}

impl Targets {
    /// DP ranks of each pod of a side.
    pub(crate) fn ranks(&self, side: Side) -> u16 {
        match side {
            Side::Prefill => self.prefill_ranks,
            Side::Decode => self.decode_ranks,
        }
    }
}

impl TargetArgs {
    /// With `found`, pods come by discovery and none has to be named. In a decode pod, `--decode` is this pod.
    pub(super) fn check(&self, found: bool, pod_local: Option<&PodLocal>) -> Result<Targets, ConfigError> {
        let ranks = self.intra_node_data_parallel_size;
        let prefill_ranks = self.prefill_data_parallel_size.unwrap_or(ranks);
        let decode_ranks = self.decode_data_parallel_size.unwrap_or(ranks);
        for (flag, ranks) in [
            ("--intra-node-data-parallel-size", ranks),
            ("--prefill-data-parallel-size", prefill_ranks),
            ("--decode-data-parallel-size", decode_ranks),
        ] {
            range((1..=MAX_RANKS_PER_POD).contains(&ranks), flag, "between 1 and 1024")?;
        }
        let complete = |pod: &PodUrl| pod.with_sidecar_scheme(self.sidecar_scheme);
        let prefill: Vec<PodUrl> = self.prefill.iter().filter_map(PrefillUrl::pod).map(complete).collect();
        let decode: Vec<PodUrl> = match pod_local {
            None => {
                let wanted = "given at least once, or pods found by --service-discovery";
                range(found || !prefill.is_empty(), "--prefill", wanted)?;
                range(found || !self.decode.is_empty(), "--decode", wanted)?;
                self.decode.iter().map(complete).collect()
            }
            Some(PodLocal { allow, .. }) => {
                let wanted = "given with --pod-local, or --prefill, or --service-discovery: what a header names is not asked unless it is known";
                range(found || !prefill.is_empty() || !allow.is_empty(), "--prefill-allow", wanted)?;
                range(self.decode.len() < 2, "--decode", "this pod's own engine with --pod-local, and no other")?;
                vec![complete(self.decode.first().unwrap_or(&PodLocal::engine()))]
            }
        };
        for pods in [&prefill, &decode] {
            for (n, pod) in pods.iter().enumerate() {
                if pods.iter().take(n).any(|other| other.engine == pod.engine) {
                    return Err(ConfigError::Repeated(pod.engine.clone()));
                }
            }
        }
        let upstream = self.upstream.check()?;
        if let (None, Some(url)) = (&upstream, prefill.iter().chain(&decode).find_map(PodUrl::https)) {
            return Err(ConfigError::NoAuthority(url.to_string()));
        }
        Ok(Targets {
            prefill,
            decode,
            prefill_ranks,
            decode_ranks,
            engine_tokens: self.engine_key()?,
            sidecar_tokens: self.token_file.as_deref().map(Tokens::from_file).transpose()?,
            sidecar_scheme: self.sidecar_scheme,
            upstream,
        })
    }
}

impl TargetArgs {
    fn engine_key(&self) -> Result<Option<Arc<Tokens>>, ConfigError> {
        if let Some(path) = &self.engine_api_key_file {
            return Ok(Some(Tokens::from_file(path)?));
        }
        let Some(Secret(key)) = &self.api_key else { return Ok(None) };
        let wrong = ConfigError::Range { flag: "--api-key", wanted: "visible ASCII characters" };
        Tokens::fixed(key).map(Some).ok_or(wrong)
    }
}

/// A value that is never shown.
#[derive(Clone)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

/// One value of `--prefill`: a pod, or the bootstrap port that `vllm-router` takes after one.
#[derive(Clone, Debug)]
pub enum PrefillUrl {
    /// A pod.
    Pod(PodUrl),
    /// A port, or `none`; without effect.
    BootstrapPort,
}

impl PrefillUrl {
    fn pod(&self) -> Option<&PodUrl> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::BootstrapPort => None,
        }
    }
}

impl FromStr for PrefillUrl {
    type Err = PodUrlError;

    fn from_str(text: &str) -> Result<Self, PodUrlError> {
        if text.eq_ignore_ascii_case("none") || text.parse::<u16>().is_ok() {
            return Ok(Self::BootstrapPort);
        }
        text.parse().map(Self::Pod)
    }
}

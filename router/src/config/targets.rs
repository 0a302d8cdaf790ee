//! Which pods there are.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::{ConfigError, PodUrl, TokenError, range};

/// Ranks that one `--prefill` or `--decode` URL may stand for; far above any pod that exists.
const MAX_RANKS_PER_POD: u16 = 1024;

/// Flags that name the pods.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
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

    /// File with the bearer token of the sidecars.
    #[arg(long, env = "KVGATE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// [`TargetArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct Targets {
    pub prefill: Vec<PodUrl>,
    pub decode: Vec<PodUrl>,
    pub ranks_per_pod: u16,
    pub sidecar_authorization: Option<http::HeaderValue>,
}

impl TargetArgs {
    pub(super) fn check(&self) -> Result<Targets, ConfigError> {
        let ranks = self.intra_node_data_parallel_size;
        range((1..=MAX_RANKS_PER_POD).contains(&ranks), "--intra-node-data-parallel-size", "between 1 and 1024")?;
        range(!self.prefill.is_empty(), "--prefill", "given at least once")?;
        range(!self.decode.is_empty(), "--decode", "given at least once")?;
        for pods in [&self.prefill, &self.decode] {
            for (n, pod) in pods.iter().enumerate() {
                if pods.iter().take(n).any(|other| other.engine == pod.engine) {
                    return Err(ConfigError::Repeated(pod.engine.clone()));
                }
            }
        }
        Ok(Targets {
            prefill: self.prefill.clone(),
            decode: self.decode.clone(),
            ranks_per_pod: ranks,
            sidecar_authorization: self.token_file.as_ref().map(read_token).transpose()?,
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

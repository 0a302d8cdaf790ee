//! Which requests go which way.

use clap::{Args, ValueEnum};

use super::{ConfigError, range};

/// Prompts of one body that may be split at once.
const MAX_SPLIT: u32 = 64;

/// What happens to a path that the router does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownPaths {
    /// It goes to one decode engine, unless it is one that administers engines.
    On,
    /// It is answered 404.
    Off,
}

/// Flags of the ways.
#[derive(Clone, Debug, Args)]
pub struct PathArgs {
    /// Pass paths that the router does not know on to one decode engine (never those that administer engines).
    #[arg(long, env = "KVGATE_PROXY_UNKNOWN", value_enum, default_value_t = UnknownPaths::On)]
    pub proxy_unknown: UnknownPaths,

    /// Most prompts of one completions body that are prefilled and decoded each by itself; a body with more goes whole to one decode engine.
    #[arg(long, env = "KVGATE_MAX_BATCH_SPLIT", value_name = "N", default_value_t = 8)]
    pub max_batch_split: u32,

    /// A prompt of fewer tokens (estimated: ids counted, else a quarter of its bytes) goes whole to one decode engine; 0 for none.
    #[arg(long, env = "KVGATE_MIN_PREFILL_TOKENS", value_name = "N", default_value_t = 0)]
    pub min_prefill_tokens: u32,
}

/// [`PathArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name in `PathArgs`")]
pub struct Paths {
    pub proxy_unknown: UnknownPaths,
    pub max_batch_split: u32,
    pub min_prefill_tokens: u32,
}

impl PathArgs {
    pub(super) fn check(&self) -> Result<Paths, ConfigError> {
        range(self.max_batch_split <= MAX_SPLIT, "--max-batch-split", "at most 64")?;
        Ok(Paths {
            proxy_unknown: self.proxy_unknown,
            max_batch_split: self.max_batch_split,
            min_prefill_tokens: self.min_prefill_tokens,
        })
    }
}

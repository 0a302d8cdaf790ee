//! The command line, read once and checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use side_channel::Endpoint;

use crate::engine::Pace;
use crate::fault::Fault;
use crate::geometry::{Geometry, GeometryError};
use crate::identity::VLLM_VERSION;
use crate::pod::{CacheMemory, PodConfig};
use crate::scheduler::Limits;

/// The embedded engine: vLLM's HTTP and side channel over real NIXL memory, no model. Its text is a function of the KV bytes
/// that it has in memory, so missing or wrong KV gives wrong text.
#[derive(Clone, Debug, Parser)]
pub struct Args {
    /// What this pod is for; a word for the log, since the requests decide (as in vLLM)
    #[arg(long, value_enum, default_value_t = Role::Both)]
    pub role: Role,
    /// HTTP address; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Side channel: the host that decode engines are told, and the port of DP rank 0; rank r gets PORT + r, with port 0
    /// every rank gets a free one
    #[arg(long, default_value = "127.0.0.1:5600", value_name = "HOST:PORT")]
    pub side_channel: Endpoint,
    /// DP ranks in this pod
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub data_parallel_size: u16,
    /// Number of this pod's first DP rank in the deployment
    #[arg(long, default_value_t = 0, value_name = "R")]
    pub data_parallel_start_rank: u16,
    /// TP shards per DP rank
    #[arg(long, default_value_t = 1, value_name = "T")]
    pub tensor_parallel_size: u16,
    /// Name of the model; part of the compatibility hash
    #[arg(long, default_value = "sim")]
    pub model: String,
    /// Attention layers
    #[arg(long, default_value_t = 32)]
    pub layers: u32,
    /// KV heads over all TP shards
    #[arg(long, default_value_t = 8)]
    pub kv_heads: u32,
    /// Elements per head
    #[arg(long, default_value_t = 128)]
    pub head_size: u32,
    /// Bytes per element
    #[arg(long, default_value_t = 2)]
    pub dtype_bytes: u32,
    /// Tokens per KV block
    #[arg(long, default_value_t = 16)]
    pub block_size: u32,
    /// KV blocks per DP rank
    #[arg(long, default_value_t = 512)]
    pub num_blocks: u32,
    /// Where the KV caches are; vram takes a CUDA driver, which is looked for before anything else
    #[arg(long, value_enum, default_value_t = MemoryArg::Dram)]
    pub memory: MemoryArg,
    /// GPUs for --memory vram, as this process counts them: one for all, or one for each TP shard of each rank in turn
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "0")]
    pub gpus: Vec<u32>,
    /// How long a prefill's blocks are kept for their reader
    #[arg(long, default_value_t = 30_000)]
    pub kv_lease_ms: u64,
    /// Requests per DP rank that have blocks at the same time; more wait
    #[arg(long, default_value_t = 64)]
    pub max_num_seqs: u32,
    /// Longest prompt and answer together, in tokens; by default what one rank's cache holds
    #[arg(long)]
    pub max_model_len: Option<u64>,
    /// Pace of prefill, tokens per second; by default as fast as it goes
    #[arg(long)]
    pub prefill_tokens_per_s: Option<u32>,
    /// Pace of decode: milliseconds per output token
    #[arg(long, default_value_t = 0)]
    pub tpot_ms: u64,
    /// Share blocks between prompts with the same beginning
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub prefix_caching: Switch,
    /// Plays the model's weights: engines with the same seed compute the same KV and the same text
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The vLLM version it says it is; part of the compatibility hash
    #[arg(long, default_value = VLLM_VERSION, value_name = "VERSION")]
    pub vllm_version: String,
    /// Let the side-channel listener die of an unexpected question, as vLLM's does
    #[arg(long)]
    pub fragile_listener: bool,
    /// Go wrong on purpose: overwrite-pinned=MS, or overwrite-pinned=MS@RANK, overwrites a prefill's blocks so long after it was answered, lease or not
    #[arg(long = "fault", value_name = "NAME=MS[@RANK]", hide = true)]
    pub fault: Option<Fault>,
    /// Append one JSON line per request
    #[arg(long, value_name = "FILE")]
    pub request_log: Option<PathBuf>,
    /// Write `{"http": port, "side_channel": [ports]}` when ready
    #[arg(long, value_name = "FILE")]
    pub ports_file: Option<PathBuf>,
    /// libnixl_capi.so; by default it is searched for
    #[arg(long, value_name = "PATH")]
    pub nixl_library: Option<PathBuf>,
    /// Parameter of NIXL's UCX back end, e.g. ucx_error_handling_mode=none; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub ucx_param: Vec<(String, String)>,
}

/// What a pod is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Computes prompts.
    Prefill,
    /// Generates text from KV that it reads.
    Decode,
    /// Either.
    Both,
}

/// Where KV caches are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MemoryArg {
    /// In host memory.
    Dram,
    /// In GPU memory.
    Vram,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// A command line that cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A size.
    #[error("the KV cache cannot be built")]
    Geometry(#[from] GeometryError),
    /// A number that must not be 0.
    #[error("--{0} must be at least 1")]
    Zero(&'static str),
    /// Ranks, or their ports, past 65535.
    #[error("DP rank {rank} would need side-channel port {port}, which does not exist")]
    Ports {
        /// The last rank.
        rank: u32,
        /// Its port.
        port: u32,
    },
    /// Neither one GPU for all nor one for each shard.
    #[error("--gpus names {given} GPUs: give one for all, or {needed}, one for each TP shard of each rank in turn")]
    Gpus {
        /// As many were named.
        given: usize,
        /// Ranks times TP shards.
        needed: usize,
    },
    /// vLLM refuses this, too.
    #[error("--max-model-len {wanted} does not fit: the KV cache of a rank holds {capacity} tokens (see --num-blocks)")]
    ModelLength {
        /// What was asked for.
        wanted: u64,
        /// What fits.
        capacity: u64,
    },
}

/// Requests that may wait at one rank.
const MAX_WAITING: usize = 4096;

impl Args {
    /// The checked configuration of a pod.
    ///
    /// # Errors
    /// [`ConfigError`] that names the flag.
    pub fn pod(&self) -> Result<PodConfig, ConfigError> {
        let geometry = Geometry {
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_size: self.head_size,
            dtype_bytes: self.dtype_bytes,
            block_tokens: self.block_size,
            num_blocks: self.num_blocks,
            tensor_parallel: self.tensor_parallel_size,
        };
        let geometry = geometry.checked()?;
        for (flag, zero) in [
            ("data-parallel-size", self.data_parallel_size == 0),
            ("max-num-seqs", self.max_num_seqs == 0),
            ("kv-lease-ms", self.kv_lease_ms == 0),
            ("prefill-tokens-per-s", self.prefill_tokens_per_s == Some(0)),
            ("max-model-len", self.max_model_len == Some(0)),
        ] {
            if zero {
                return Err(ConfigError::Zero(flag));
            }
        }
        let last = u32::from(self.data_parallel_start_rank) + u32::from(self.data_parallel_size) - 1;
        let port = u32::from(self.side_channel.port) + last;
        if port > u32::from(u16::MAX) {
            return Err(ConfigError::Ports { rank: last, port });
        }
        let capacity = geometry.capacity_tokens();
        let max_model_len = self.max_model_len.unwrap_or(capacity);
        if max_model_len > capacity {
            return Err(ConfigError::ModelLength { wanted: max_model_len, capacity });
        }
        Ok(PodConfig {
            side_channel: self.side_channel.clone(),
            ranks: self.data_parallel_size,
            first_rank: self.data_parallel_start_rank,
            model: self.model.clone(),
            geometry,
            memory: self.memory()?,
            pace: Pace {
                seed: self.seed,
                kv_lease: Duration::from_millis(self.kv_lease_ms),
                prefill_tokens_per_s: self.prefill_tokens_per_s,
                time_per_token: Duration::from_millis(self.tpot_ms),
            },
            limits: Limits {
                max_running: usize::try_from(self.max_num_seqs).unwrap_or(usize::MAX),
                max_waiting: MAX_WAITING,
            },
            max_model_len,
            prefix_caching: self.prefix_caching == Switch::On,
            vllm_version: self.vllm_version.clone(),
            fragile_listener: self.fragile_listener,
            fault: self.fault,
            request_log: self.request_log.clone(),
        })
    }

    fn memory(&self) -> Result<CacheMemory, ConfigError> {
        if self.memory == MemoryArg::Dram {
            return Ok(CacheMemory::Host);
        }
        let needed = usize::from(self.data_parallel_size).saturating_mul(usize::from(self.tensor_parallel_size));
        match self.gpus.len() {
            given if given == 1 || given == needed => Ok(CacheMemory::Gpus(self.gpus.clone())),
            given => Err(ConfigError::Gpus { given, needed }),
        }
    }
}

fn key_value(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("expected KEY=VALUE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(args: &str) -> Args {
        Args::try_parse_from(format!("sim {args}").split_whitespace()).unwrap()
    }

    #[test]
    fn defaults_are_the_seeds_geometry() {
        let pod = args("").pod().unwrap();
        assert_eq!(pod.geometry.token_bytes(), 128 * 1024);
        assert_eq!(pod.max_model_len, 511 * 16);
        assert_eq!(pod.side_channel, Endpoint::new("127.0.0.1", 5600));
    }

    #[test]
    fn impossible_command_lines_name_the_flag() {
        for (line, words) in [
            ("--data-parallel-size 0", "--data-parallel-size"),
            ("--max-num-seqs 0", "--max-num-seqs"),
            ("--prefill-tokens-per-s 0", "--prefill-tokens-per-s"),
            ("--side-channel h:65535 --data-parallel-size 2", "port 65536"),
            ("--max-model-len 8177", "--max-model-len 8177"),
            ("--memory vram --data-parallel-size 3 --gpus 0,1", "give one for all, or 3"),
        ] {
            let error = args(line).pod().unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
        assert_eq!(args("--num-blocks 1").pod(), Err(ConfigError::Geometry(GeometryError::TooFewBlocks)));
        assert!(Args::try_parse_from(["sim", "--side-channel", "nowhere"]).is_err());
        assert!(Args::try_parse_from(["sim", "--ucx-param", "=x"]).is_err());
    }
}

//! One DP rank: takes jobs, gets their KV into its memory (computed here, or read from a prefill engine), and speaks.
//!
//! ```text
//! job ─► waiting ─► admitted (blocks) ─┬─ prefill: fill the missing blocks ─┬─► digest ─► tokens ─┬─► blocks free
//!                                      └─ load: READ the missing blocks ────┘                     └─► blocks pinned (P)
//! ```
//! A job runs in a task of its own and is never aborted from outside: cancelling is a token that it looks at where it waits.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::{BlockId, DpRank, EngineId, EngineRequestId};
use serde_json::{Value, json};
use side_channel::Endpoint;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vllm_wire::params::KvTransferParams;

use crate::arena::{Arena, Page};
use crate::kv_bytes::{BlockKey, block_keys};
use crate::load::LoadError;
use crate::peers::{Peers, Remote};
use crate::request_log::RequestLog;
use crate::scheduler::{Admit, Admitted, Command};
use crate::stats::{Counted, RankStats};
use crate::wall;
use crate::words::{LONGEST_NATURAL, Token};

mod pull;
mod run;

/// What all ranks of a pod have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The model's weights, so to speak.
    pub seed: u64,
    /// How long P keeps blocks for D, and D's heartbeat is a sixth of.
    pub kv_lease: Duration,
    /// Prompt tokens per second; `None`: as fast as it goes.
    pub prefill_tokens_per_s: Option<u32>,
    /// Time per output token after the first.
    pub time_per_token: Duration,
}

/// One DP rank.
#[derive(Debug)]
pub struct Engine {
    /// Its rank in the deployment's numbering.
    pub rank: DpRank,
    /// Its engine id.
    pub id: EngineId,
    /// Where its side channel listens, as told to decode engines.
    pub endpoint: Endpoint,
    /// Its memory.
    pub arena: Arc<Arena>,
    /// Its numbers.
    pub stats: Arc<RankStats>,
    /// The engines it reads from.
    pub peers: Arc<Peers>,
    /// Its scheduler.
    pub commands: mpsc::Sender<Command>,
    /// How it computes.
    pub pace: Pace,
    /// One prompt is computed at a time.
    pub compute: Mutex<()>,
    /// A fault: how long after a prefill's answer its blocks are overwritten, whoever still means to read them.
    pub overwrite_pinned: Option<Duration>,
    /// Where its requests are logged.
    pub log: RequestLog,
    /// Where its tasks run.
    pub tasks: TaskTracker,
}

/// What a request asks of an engine.
#[derive(Debug)]
pub struct Job {
    /// The engine's name for it.
    pub id: EngineRequestId,
    /// The prompt.
    pub tokens: Arc<[u32]>,
    /// Tokens to generate, each choice; `None`: as many as the text wants, within the model's length.
    pub max_new: Option<u32>,
    /// The model's length in tokens.
    pub max_model_len: u64,
    /// How many texts.
    pub choices: u32,
    /// Its number in its call: told with everything that it says.
    pub index: u32,
    /// What is to happen with its KV.
    pub kv: KvRole,
    /// Cancelled when nobody wants the answer any more.
    pub cancel: CancellationToken,
}

/// Where a job's KV comes from and goes to.
#[derive(Clone, Debug)]
pub enum KvRole {
    /// Computed here, for this job only.
    Plain,
    /// Computed here, kept for a decode engine (`do_remote_decode`).
    ForDecode,
    /// Read from a prefill engine (`do_remote_prefill`).
    FromPrefill(Box<KvTransferParams>),
}

/// What a job says while it runs.
#[derive(Debug)]
pub enum Output {
    /// One token.
    Token {
        /// Which text.
        choice: u32,
        /// The token.
        token: Token,
        /// Set on the last token of a text: `length` or `stop`.
        finish: Option<&'static str>,
    },
    /// All is said; `kv_transfer_params` of a prefill.
    Done(Option<Value>),
    /// It failed.
    Failed(JobError),
}

/// Where the jobs of a call say what they say, each with its number.
pub type Outputs = mpsc::Sender<(u32, Output)>;

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Nobody wants it any more.
    #[error("the request was aborted")]
    Aborted,
    /// Too many wait, or the engine is stopping.
    #[error("the engine takes no more requests")]
    Refused,
    /// Its KV could not be read from the prefill engine.
    #[error("load the KV cache of the request")]
    Load(#[from] LoadError),
    /// A bug: its blocks lie outside the arena, or a task of it died.
    #[error("compute the request")]
    Compute,
}

impl JobError {
    /// The word in the request log.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Refused => "refused",
            Self::Load(_) => "load_failed",
            Self::Compute => "compute_failed",
        }
    }
}

impl KvRole {
    fn word(&self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::ForDecode => "prefill",
            Self::FromPrefill(_) => "decode",
        }
    }

    /// The remote side of a load.
    fn remote(&self) -> Option<(Remote, &KvTransferParams)> {
        match self {
            Self::FromPrefill(params) => {
                let endpoint = Endpoint::new(params.remote_host.clone(), params.remote_port);
                let engine = params.remote_engine_id.clone();
                Some((Remote { engine, endpoint, tp_size: params.tp_size }, params))
            }
            Self::Plain | Self::ForDecode => None,
        }
    }
}

impl Job {
    /// The most tokens that each text can have.
    fn most_new(&self) -> u32 {
        let room = self.max_model_len.saturating_sub(u64::try_from(self.tokens.len()).unwrap_or(u64::MAX));
        self.max_new.unwrap_or_else(|| LONGEST_NATURAL.min(u32::try_from(room).unwrap_or(u32::MAX))).max(1)
    }
}

/// A prompt cut into blocks.
struct Prompt {
    keys: Vec<BlockKey>,
    /// Full blocks: what the prefix cache may keep.
    full: usize,
    /// Blocks that may come from the prefix cache: all full ones but the one with the last token, which is computed anew.
    cacheable: usize,
}

impl Prompt {
    fn new(seed: u64, tokens: &[u32], block_size: usize) -> Self {
        let keys = block_keys(seed, tokens, block_size);
        let (full, cacheable) = (tokens.len() / block_size, tokens.len().saturating_sub(1) / block_size);
        Self { keys, full, cacheable }
    }

    /// The pages of blocks `from..` of the prompt.
    fn pages(&self, blocks: &[BlockId], from: usize) -> Vec<Page> {
        let numbered = (0..).zip(&self.keys).zip(blocks).skip(from);
        numbered.map(|((position, key), block)| Page { block: *block, position, key: *key }).collect()
    }
}

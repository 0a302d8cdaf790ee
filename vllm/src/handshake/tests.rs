//! Golden bytes (written by msgspec 0.22 from the dataclasses of protocol doc §1.3, §1.4) and hostile bytes.

use kv::ids::EngineId;
use kv::layout::{LayoutError, MemoryKind, RegionGroup};
use proptest::prelude::*;

use super::*;
use crate::msgpack::MAX_BYTES;
use crate::versions::V0_32_0;

const QUESTION_0_0: &str = "93c40c6765745f6d6574615f6d73670000";
const QUESTION_0_300: &str = "93c40c6765745f6d6574615f6d736700cd012c";
const CLOCK_1234_5: &str = "cb40934a0000000000";
/// Two DRAM regions, the second one shared; every optional field as a pull engine sends it.
const METADATA: &str = include_str!("golden_metadata.hex");
/// The optional lists nil, everything that kvgate refuses present.
const ODD_METADATA: &str = include_str!("golden_odd_metadata.hex");

fn unhex(hex: &str) -> Vec<u8> {
    let hex = hex.trim();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn metadata() -> AgentMetadata {
    AgentMetadata {
        engine_id: EngineId::new("eng_dp0"),
        agent_metadata: Bytes::from_static(b"nixlSerDes|Agent$\x00\xff"),
        kv_caches_base_addr: vec![0x7f00_0000_0000, 0x7f00_1000_0000],
        device_id: 0,
        num_blocks: 4096,
        block_lens: vec![65_536; 2],
        block_strides: vec![65_536; 2],
        kv_cache_layout: "LBHNC".to_owned(),
        block_size: 128,
        ssm_sizes: (0, 0),
        attn_backend_name: "CPU_ATTN".to_owned(),
        physical_blocks_per_logical_kv_block: 1,
        region_num_blocks: Some(vec![4096; 2]),
        region_group_ids: Some(vec![0, -1]),
        region_names: Some(vec![
            "model.layers.0.self_attn.attn".to_owned(),
            "model.layers.1.self_attn.attn".to_owned(),
        ]),
        region_mem_types: Some(vec!["DRAM".to_owned(); 2]),
        dcp_size: 1,
        pcp_size: 1,
        ple_block_len: None,
        region_members: vec![],
        packed_member_layouts: vec![],
    }
}

/// The metadata as a map, for tests that change one entry.
fn entries() -> Vec<(Value, Value)> {
    let value = rmpv::decode::read_value(&mut &metadata().encode(&V0_32_0)[..]).unwrap();
    let Value::Map(entries) = value else { panic!("metadata is a map") };
    entries
}

fn with(field: &str, value: Value) -> Result<AgentMetadata, HandshakeError> {
    let mut entries = entries();
    entries.iter_mut().find(|(key, _)| key.as_str() == Some(field)).unwrap().1 = value;
    AgentMetadata::decode(&msgpack::write(&Value::Map(entries)))
}

#[test]
fn the_question_is_vllms() {
    assert_eq!(request(&V0_32_0, 0, TpRank(0)), unhex(QUESTION_0_0));
    assert_eq!(request(&V0_32_0, 0, TpRank(300)), unhex(QUESTION_0_300));
    assert_eq!(parse_request(&V0_32_0, &unhex(QUESTION_0_300)).unwrap(), MetaRequest { pp: 0, tp: TpRank(300) });
}

#[test]
fn other_questions_are_refused() {
    let text = Value::Array(vec!["get_meta_msg".into(), 0.into(), 0.into()]);
    let two = Value::Array(vec![Value::Binary(QUESTION.to_vec()), 0.into()]);
    let four = Value::Array(vec![Value::Binary(QUESTION.to_vec()), 0.into(), 0.into(), 0.into()]);
    let negative = Value::Array(vec![Value::Binary(QUESTION.to_vec()), 0.into(), (-1).into()]);
    let float = Value::Array(vec![Value::Binary(QUESTION.to_vec()), 0.into(), 0.0.into()]);
    let other = Value::Array(vec![Value::Binary(b"get_meta".to_vec()), 0.into(), 0.into()]);
    for question in [text, two, four, negative, float, other, Value::Nil] {
        assert!(
            matches!(parse_request(&V0_32_0, &msgpack::write(&question)), Err(HandshakeError::NotAQuestion)),
            "{question}"
        );
    }
    let mut trailing = unhex(QUESTION_0_0);
    trailing.push(0);
    assert!(matches!(parse_request(&V0_32_0, &trailing), Err(HandshakeError::Trailing { bytes: 1, .. })));
    assert!(matches!(parse_request(&V0_32_0, b""), Err(HandshakeError::Msgpack { .. })));
}

#[test]
fn the_answer_is_vllms() {
    let payload = Payload { compatibility_hash: "a".repeat(64), agent_metadata: unhex(METADATA).into() };
    let frames = reply(&payload, 1234.5);
    // `82`, the two keys in order, a str8 of 64, a bin16 of 503 bytes.
    let mut golden = b"\x82\xb2compatibility_hash\xd9\x40".to_vec();
    golden.extend(vec![b'a'; 64]);
    golden.extend(b"\xb4agent_metadata_bytes\xc5\x01\xf7");
    golden.extend(unhex(METADATA));
    assert_eq!(frames, [Bytes::from(golden), unhex(CLOCK_1234_5).into()]);
    assert_eq!(parse_reply(&V0_32_0, &frames).unwrap(), Reply { payload, timestamp: 1234.5 });
}

#[test]
fn answers_are_checked_frame_by_frame() {
    let payload = Payload { compatibility_hash: "h".to_owned(), agent_metadata: Bytes::new() };
    let frames = reply(&payload, 0.0);
    assert!(matches!(parse_reply(&V0_32_0, &frames[..1]), Err(HandshakeError::Frames { found: 1, expected: 2 })));
    let three = [&frames[0], &frames[1], &frames[1]];
    assert!(matches!(parse_reply(&V0_32_0, &three), Err(HandshakeError::Frames { found: 3, expected: 2 })));
    let integer_clock = [frames[0].clone(), msgpack::write(&7.into()).into()];
    assert!((parse_reply(&V0_32_0, &integer_clock).unwrap().timestamp - 7.0).abs() < 1e-9);
    let no_clock = [frames[0].clone(), msgpack::write(&Value::Nil).into()];
    assert!(matches!(parse_reply(&V0_32_0, &no_clock), Err(HandshakeError::Field { what: "timestamp", .. })));
    let text = Value::Map(vec![("compatibility_hash".into(), "h".into()), ("agent_metadata_bytes".into(), "x".into())]);
    let text = [Bytes::from(msgpack::write(&text)), frames[1].clone()];
    assert!(matches!(parse_reply(&V0_32_0, &text), Err(HandshakeError::Field { field: "agent_metadata_bytes", .. })));
}

#[test]
fn metadata_is_vllms_byte_for_byte() {
    assert_eq!(metadata().encode(&V0_32_0), unhex(METADATA));
    assert_eq!(AgentMetadata::decode(&unhex(METADATA)).unwrap(), metadata());
    let odd = AgentMetadata::decode(&unhex(ODD_METADATA)).unwrap();
    assert_eq!(odd.ssm_sizes, (300, 70_000));
    assert_eq!(odd.packed_member_layouts, [("a".to_owned(), (1, 2))]);
    assert_eq!(odd.encode(&V0_32_0), unhex(ODD_METADATA));
}

#[test]
fn order_is_free_unknown_keys_are_ignored_and_optional_ones_may_be_absent() {
    let mut shuffled = entries();
    shuffled.reverse();
    shuffled.insert(3, ("news".into(), Value::Array(vec![Value::Nil, 1.5.into()])));
    shuffled.push((7.into(), Value::Nil));
    assert_eq!(AgentMetadata::decode(&msgpack::write(&Value::Map(shuffled))).unwrap(), metadata());

    let required = entries().into_iter().take(12).collect();
    let decoded = AgentMetadata::decode(&msgpack::write(&Value::Map(required))).unwrap();
    assert_eq!((decoded.region_num_blocks, decoded.dcp_size, decoded.pcp_size), (None, 1, 1));

    for (index, (key, _)) in entries().iter().enumerate().take(12) {
        let mut without = entries();
        without.remove(index);
        let error = AgentMetadata::decode(&msgpack::write(&Value::Map(without))).unwrap_err();
        assert!(matches!(error, HandshakeError::Missing { field, .. } if Some(field) == key.as_str()), "{error}");
    }
}

#[test]
fn types_are_strict() {
    for (field, value) in [
        ("engine_id", Value::Binary(b"eng".to_vec())),
        ("engine_id", "".into()),
        ("agent_metadata", "blob".into()),
        ("num_blocks", 1.0.into()),
        ("num_blocks", true.into()),
        ("num_blocks", (-1).into()),
        ("num_blocks", (1_u64 << 32).into()),
        ("kv_caches_base_addr", Value::Array(vec![Value::F64(1.0)])),
        ("block_lens", Value::Array(vec![(-1).into()])),
        ("ssm_sizes", Value::Array(vec![0.into()])),
        ("region_names", Value::Array(vec![Value::Binary(vec![])])),
        ("region_group_ids", Value::Array(vec![Value::Nil])),
        ("dcp_size", Value::Nil),
        ("kv_caches_base_addr", Value::Array(vec![0.into(); MAX_REGIONS + 1])),
    ] {
        let error = with(field, value).unwrap_err();
        assert!(matches!(error, HandshakeError::Field { field: named, .. } if named == field), "{error}");
    }
    assert!(matches!(AgentMetadata::decode(b"\x90"), Err(HandshakeError::NotAMap { .. })));
}

#[test]
fn hostile_lengths_cost_nothing() {
    for bytes in
        [&b"\xdf\xff\xff\xff\xff"[..], b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff\x41"]
    {
        assert!(matches!(AgentMetadata::decode(bytes), Err(HandshakeError::Msgpack { .. })));
    }
    assert!(AgentMetadata::decode(&vec![0x91; 100_000]).is_err(), "nesting is bounded");
    assert!(matches!(AgentMetadata::decode(&vec![0; MAX_BYTES + 1]), Err(HandshakeError::TooLarge { .. })));
}

#[test]
fn a_layout_is_what_the_metadata_says() {
    let layout = metadata().layout().unwrap();
    assert_eq!((layout.memory, layout.device, layout.regions.len()), (MemoryKind::Dram, 0, 2));
    assert_eq!((layout.kernel_per_logical, layout.kernel_block_tokens), (1, 128));
    assert_eq!(layout.regions[0].group, RegionGroup::One(0));
    assert_eq!(layout.regions[1].group, RegionGroup::Shared);
    assert_eq!(layout.regions[1].name, "model.layers.1.self_attn.attn");
    let bare = AgentMetadata { region_num_blocks: None, region_group_ids: None, region_names: None, ..metadata() };
    assert_eq!(bare.layout().unwrap().regions[1].num_blocks, 4096);
}

#[test]
fn what_cannot_be_copied_is_refused_in_words() {
    type Change = fn(&mut AgentMetadata);
    let words = |change: Change| {
        let mut metadata = metadata();
        change(&mut metadata);
        metadata.layout().unwrap_err()
    };
    assert_eq!(words(|m| m.ssm_sizes = (1, 0)), UnsupportedLayout::StateSpace);
    assert_eq!(words(|m| m.dcp_size = 2), UnsupportedLayout::ContextParallel { what: "dcp_size", size: 2 });
    assert_eq!(words(|m| m.pcp_size = 0), UnsupportedLayout::ContextParallel { what: "pcp_size", size: 0 });
    assert_eq!(words(|m| m.ple_block_len = Some(1)), UnsupportedLayout::PerLayerEmbedding);
    assert_eq!(words(|m| m.packed_member_layouts = vec![("a".to_owned(), (1, 2))]), UnsupportedLayout::Packed);
    let mixed = words(|m| m.region_mem_types = Some(vec!["VRAM".to_owned(), "DRAM".to_owned()]));
    assert_eq!(mixed, UnsupportedLayout::Memory(vec!["DRAM".to_owned(), "VRAM".to_owned()]));
    assert_eq!(words(|m| m.region_mem_types = Some(vec![])), UnsupportedLayout::Memory(vec![]));
    let short = words(|m| m.block_lens.truncate(1));
    assert_eq!(short, UnsupportedLayout::ListLength { field: "block_lens", found: 1, regions: 2 });
    assert_eq!(words(|m| m.region_group_ids = Some(vec![0, -2])), UnsupportedLayout::Group { region: 1, group: -2 });
    let geometry = words(|m| m.block_size = 0);
    assert_eq!(geometry, UnsupportedLayout::Geometry(LayoutError::Zero("block_size")));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        parse_request(&V0_32_0, &bytes).ok();
        parse_reply(&V0_32_0, &[&bytes, &bytes]).ok();
        AgentMetadata::decode(&bytes).ok();
    }

    #[test]
    fn damaged_metadata_is_read_without_a_panic(at in any::<prop::sample::Index>(), byte: u8, cut in 0_usize..600) {
        let mut bytes = unhex(METADATA);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut);
        if let Ok(metadata) = AgentMetadata::decode(&bytes) {
            metadata.layout().ok();
            prop_assert_eq!(AgentMetadata::decode(&metadata.encode(&V0_32_0)).unwrap(), metadata);
        }
    }
}

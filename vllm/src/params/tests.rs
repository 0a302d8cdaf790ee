//! Parameters: what is taken, what is refused.

use kv::blocks::BlockListError;
use kv::ids::BlockId;
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// What a live P answers (protocol doc §4.3).
fn example() -> Value {
    json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[3, 1, 2]],
        "remote_engine_id": "9b1f_dp1", "remote_request_id": "cmpl-x-0-1a2b3c4d", "remote_host": "localhost", "remote_port": 5601,
        "tp_size": 1, "dcp_size": 1, "pp_size": 1, "remote_num_tokens": 300, "transfer_mode": "pull",
        "remote_blocks_expiry_time": null, "remote_prefill_cached_tokens": 0,
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut example = example();
    example[field] = value;
    example
}

#[test]
fn a_prefills_parameters_round_trip_with_what_we_do_not_know() {
    let params = KvTransferParams::parse(&example()).unwrap();
    assert_eq!(params.remote_engine_id.as_str(), "9b1f_dp1");
    assert_eq!(params.remote_block_ids.total(), 3);
    assert_eq!(params.extra.len(), 2);
    assert_eq!(params.to_value(), example());
    params.check_supported().unwrap();
}

#[test]
fn sizes_that_are_one_by_default_and_the_mode_may_be_missing() {
    for absent in ["dcp_size", "pp_size", "transfer_mode"] {
        for value in [with(absent, Value::Null), {
            let mut example = example();
            example.as_object_mut().unwrap().remove(absent);
            example
        }] {
            let params = KvTransferParams::parse(&value).unwrap();
            assert_eq!((params.dcp_size, params.pp_size), (1, 1));
            assert_eq!(KvTransferParams::parse(&params.to_value()).unwrap(), params);
        }
    }
}

#[test]
fn what_must_be_there_is_named_when_it_is_not() {
    for field in FIELDS.into_iter().filter(|field| !["dcp_size", "pp_size", "transfer_mode"].contains(field)) {
        assert_eq!(KvTransferParams::parse(&with(field, Value::Null)), Err(ParamsError::Missing(field)));
        let mut without = example();
        without.as_object_mut().unwrap().remove(field);
        assert_eq!(KvTransferParams::parse(&without), Err(ParamsError::Missing(field)));
    }
    for other in [json!(null), json!([]), json!("x"), json!(1)] {
        assert_eq!(KvTransferParams::parse(&other), Err(ParamsError::NotAnObject));
    }
}

#[test]
fn ill_typed_fields_are_named() {
    let long = "x".repeat(MAX_TEXT + 1);
    let wrong: Vec<(&'static str, Vec<Value>)> = vec![
        ("do_remote_prefill", vec![json!(1), json!("true")]),
        ("do_remote_decode", vec![json!(0), json!([])]),
        ("remote_engine_id", vec![json!(""), json!(1), json!("a\nb"), json!(long)]),
        (
            "remote_request_id",
            vec![json!(""), json!("a,b"), json!("HB:a"), json!("PUSH_REG:a"), json!(7), json!("a\0")],
        ),
        ("remote_host", vec![json!(""), json!("a b"), json!("a/b"), json!("a@b"), json!("a?b"), json!(["a"])]),
        ("remote_port", vec![json!(0), json!(65_536), json!(-1), json!(true), json!(5600.0), json!("5600")]),
        ("tp_size", vec![json!(0), json!(true), json!(1.0), json!(65_536)]),
        ("dcp_size", vec![json!(0), json!(true), json!("1")]),
        ("pp_size", vec![json!(0), json!(1.5)]),
        ("remote_num_tokens", vec![json!(0), json!(-1), json!(1.0), json!(true), json!("9")]),
        ("transfer_mode", vec![json!(1), json!("")]),
        ("remote_block_ids", vec![json!([1, 2]), json!({"0": [1]}), json!("x"), json!([[true]]), json!([[1.0]])]),
        ("remote_block_ids", vec![json!([[-1]]), json!([[4_294_967_296_u64]]), json!([[null]]), json!([null])]),
        ("remote_block_ids", vec![Value::from(vec![json!([1]); MAX_GROUPS + 1])]),
        ("remote_block_ids", vec![json!([(0..=MAX_BLOCKS).collect::<Vec<_>>()])]),
    ];
    for (field, values) in wrong {
        for value in values {
            let error = KvTransferParams::parse(&with(field, value)).unwrap_err();
            assert!(matches!(error, ParamsError::Field { field: named, .. } if named == field), "{error}");
        }
    }
}

#[test]
fn empty_and_doubled_blocks_are_refused() {
    let of = |blocks: Value| KvTransferParams::parse(&with("remote_block_ids", blocks)).unwrap_err();
    assert_eq!(of(json!([])), ParamsError::Blocks(GroupedBlocksError::NoGroup));
    let source = BlockListError::Empty;
    assert_eq!(of(json!([[1], []])), ParamsError::Blocks(GroupedBlocksError::Group { group: 1, source }));
    let source = BlockListError::Duplicate(BlockId(4));
    assert_eq!(of(json!([[4, 4]])), ParamsError::Blocks(GroupedBlocksError::Group { group: 0, source }));
}

#[test]
fn unknown_fields_are_bounded_in_number() {
    let mut object = example();
    for index in 0..MAX_EXTRA {
        object[format!("x{index}")] = json!(index);
    }
    assert_eq!(KvTransferParams::parse(&object), Err(ParamsError::TooManyFields(MAX_EXTRA + 2)));
}

#[test]
fn well_formed_is_not_yet_supported() {
    let refused = |field: &str, value: Value| KvTransferParams::parse(&with(field, value)).unwrap().check_supported();
    assert_eq!(refused("do_remote_prefill", json!(false)), Err(UnsupportedParams::Direction));
    assert_eq!(refused("do_remote_decode", json!(true)), Err(UnsupportedParams::Direction));
    assert_eq!(refused("pp_size", json!(2)), Err(UnsupportedParams::Parallel { field: "pp_size", size: 2 }));
    assert_eq!(refused("dcp_size", json!(2)), Err(UnsupportedParams::Parallel { field: "dcp_size", size: 2 }));
    assert_eq!(refused("transfer_mode", json!("push")), Err(UnsupportedParams::Mode("push".to_owned())));
}

#[test]
fn token_ids_travel_in_the_extra_fields() {
    let raw =
        RawParams::read(example().to_string().into()).with_token_ids(&TokenIds::read("[128000,9]".into()).unwrap());
    let params = KvTransferParams::read(raw.as_str()).unwrap();
    assert_eq!(params.extra["prompt_token_ids"], json!([128_000, 9]));
    assert_eq!(params.to_value().to_string(), raw.as_str());
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z,:]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 5, |inner| prop::collection::vec(inner, 0..5).prop_map(Value::from))
}

proptest! {
    #[test]
    fn one_field_of_any_value_never_panics_and_what_parses_round_trips(field in 0..FIELDS.len(), value in json_value()) {
        if let Ok(params) = KvTransferParams::parse(&with(FIELDS[field], value)) {
            prop_assert_eq!(KvTransferParams::parse(&params.to_value()), Ok(params));
        }
    }
}

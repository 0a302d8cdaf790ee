//! The same for random bodies.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::ONE_RANK;
use crate::expected::{check_alone, check_decode, check_prefill};
use crate::world::World;

fn leaf() -> impl Strategy<Value = String> {
    const ODD: &[&str] = &[
        "null",
        "true",
        "-0",
        "0.10",
        "1e400",
        "-1E+2",
        "12345678901234567890123",
        r#""""#,
        r#""\u00e9é""#,
        r#""}{][,:""#,
        r#""\"\\""#,
        r#""\ud800""#,
        r#""\ud83d\ude00😀""#,
        r#""kv_transfer_params""#,
        "{}",
        "[ ]",
    ];
    prop_oneof![prop::sample::select(ODD).prop_map(str::to_owned), any::<i64>().prop_map(|n| n.to_string())]
}

fn space() -> impl Strategy<Value = String> {
    "[ \n\r\t]{0,2}"
}

fn key() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &["kv_transfer_params", "max_tokens", "stream", "n", "a", "\\u0061", "ключ", "\\ud800", ""];
    prop_oneof![prop::sample::select(KNOWN).prop_map(str::to_owned), "[a-c]{1,3}"]
}

fn value() -> impl Strategy<Value = String> {
    leaf().prop_recursive(4, 24, 4, |inner| {
        let list = prop::collection::vec((space(), inner.clone(), space()), 0..4);
        let members = prop::collection::vec((key(), space(), inner), 0..4);
        let entry = |(a, value, b): (String, String, String)| format!("{a}{value}{b}");
        let member = |(key, space, value): (String, String, String)| format!("\"{key}\"{space}:{space}{value}");
        prop_oneof![
            list.prop_map(move |list| format!("[{}]", list.into_iter().map(entry).collect::<Vec<_>>().join(","))),
            members.prop_map(move |list| format!("{{{}}}", list.into_iter().map(member).collect::<Vec<_>>().join(","))),
        ]
    })
}

/// Members that the router reads have the type that they must have; all others are anything.
fn member() -> impl Strategy<Value = (String, String)> {
    let one_of = |keys: &'static [&'static str], values: &'static [&'static str]| {
        (prop::sample::select(keys), prop::sample::select(values))
            .prop_map(|(key, value)| (key.to_owned(), value.to_owned()))
    };
    prop_oneof![
        1 => one_of(&["stream", "str\\u0065am", "return_token_ids"], &["true", "false", "null"]),
        1 => one_of(&["n", "\\u006e", "best_of"], &["1", "null", "2"]),
        1 => one_of(&["echo"], &["true", "false"]),
        1 => one_of(&["model"], &["\"m\"", "null"]),
        1 => one_of(&["prompt"], &["\"p\"", "[1, 2]", "null"]),
        2 => (
            prop::sample::select(&[
                "kv_transfer_params", "kv\\u005ftransfer_params", "max_tokens", "max\\u005ftokens", "stream_options",
                "max_completion_tokens", "min_tokens", "logprobs", "guided_json", "guided_x", "structured_outputs",
                "response_format", "messages", "store", "request_id", "max_output_tokens",
            ][..]).prop_map(str::to_owned),
            value(),
        ),
        2 => ("[D-Z_]{1,6}", value()),
    ]
}

fn body() -> impl Strategy<Value = String> {
    let member = (space(), member(), space(), space()).prop_map(|(before, (key, value), between, after)| {
        format!("{before}\"{key}\"{between}:{between}{value}{after}")
    });
    (space(), prop::collection::vec(member, 0..8), space())
        .prop_map(|(head, members, tail)| format!("{head}{{{}}}{tail}", members.join(",")))
}

#[test]
fn random_bodies_arrive_as_they_were_sent() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let world = runtime.block_on(World::new(ONE_RANK));
    let paths = prop::sample::select(&["/v1/completions", "/v1/chat/completions", "/v1/messages"][..]);
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(paths, body()), |(path, body)| {
        let answer = runtime.block_on(world.post(path, Bytes::from(body.clone()), &[]));
        prop_assert_eq!(answer.status.as_u16(), 200, "{} {}", body, String::from_utf8_lossy(&answer.body));
        let decode = world.journal.bodies(true).pop().unwrap();
        if answer.header("x-kvgate-path") == "local" {
            check_alone(body.as_bytes(), &decode);
        } else {
            check_prefill(path, body.as_bytes(), &world.journal.bodies(false).pop().unwrap());
            check_decode(body.as_bytes(), &decode);
        }
        Ok(())
    });
    runtime.block_on(async { drop(world) });
    outcome.unwrap();
}

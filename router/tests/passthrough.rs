//! Invariant B: a client's body arrives at P and D byte for byte, apart from the few members that P/D needs.
//!
//! What arrives is compared by a reader of its own ([`members`]), which shares no code with the router's. The fakes are those of
//! `tests/router`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "passthrough/corpus.rs"]
mod corpus;
#[path = "passthrough/edits.rs"]
mod edits;
#[path = "router/engines.rs"]
#[expect(dead_code, reason = "some of it is for tests/router")]
mod engines;
#[path = "passthrough/expected.rs"]
mod expected;
#[path = "router/journal.rs"]
#[expect(dead_code, reason = "some of it is for tests/router")]
mod journal;
#[path = "passthrough/members.rs"]
mod members;
#[path = "passthrough/random.rs"]
mod random;
#[path = "router/sidecars.rs"]
#[expect(dead_code, reason = "some of it is for tests/router")]
mod sidecars;
#[path = "router/world.rs"]
#[expect(dead_code, reason = "some of it is for tests/router")]
mod world;

use bytes::Bytes;

use corpus::{CHATS, COMPLETIONS, MESSAGES, RESPONSES};
use expected::{check_decode, check_prefill};
use world::{Setup, World};

const ONE_RANK: Setup = Setup {
    traced: false,
    ranks: 1,
    decode_pods: 1,
    args: "",
    token: None,
    collect_by_ms: 30_000,
    debug_headers: false,
    dead_prefill: false,
    dead_decode: false,
    pod_local: false,
    unnamed_prefill: false,
};

async fn sent(world: &World, path: &str, body: Bytes) -> (Vec<u8>, Vec<u8>) {
    let answer = world.post(path, body, &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-path")), (200, "pd"), "{path}: {answer:?}");
    (world.journal.bodies(false).pop().unwrap(), world.journal.bodies(true).pop().unwrap())
}

#[tokio::test]
async fn a_corpus_of_bodies_arrives_as_it_was_sent() {
    let world = World::new(ONE_RANK).await;
    let corpus = [
        ("/v1/completions", COMPLETIONS),
        ("/v1/chat/completions", CHATS),
        ("/v1/responses", RESPONSES),
        ("/v1/messages", MESSAGES),
    ];
    assert!(corpus.iter().map(|(_, bodies)| bodies.len()).sum::<usize>() >= 60);
    for (path, bodies) in corpus {
        for body in bodies {
            let (prefill, decode) = sent(&world, path, Bytes::from_static(body.as_bytes())).await;
            check_prefill(path, body.as_bytes(), &prefill);
            check_decode(body.as_bytes(), &decode);
        }
    }
}

#[tokio::test]
async fn nesting_as_deep_as_it_may_be_arrives_too() {
    let world = World::new(ONE_RANK).await;
    let deep = |levels: usize| format!(r#"{{"prompt":"p","x":{}1{}}}"#, "[".repeat(levels), "]".repeat(levels));
    let body = deep(127);
    let (prefill, decode) = sent(&world, "/v1/completions", body.clone().into()).await;
    check_prefill("/v1/completions", body.as_bytes(), &prefill);
    check_decode(body.as_bytes(), &decode);
    for levels in [128, 100_000] {
        assert_eq!(world.complete(deep(levels)).await.code(), "body_invalid");
    }
}

#[tokio::test]
async fn a_hundred_megabytes_arrive() {
    let args = "--max-body-bytes 110000000 --max-bodies-bytes 110000000";
    let world = World::new(Setup { args, ..ONE_RANK }).await;
    let image = "iVBORw0KGgo=".repeat(100_000_000 / 12);
    let body = Bytes::from(format!(
        r#"{{"messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{image}"}}}}]}}],"max_tokens" : 7,"x":1e400}}"#
    ));
    assert!(body.len() > 100_000_000);
    let (prefill, decode) = sent(&world, "/v1/chat/completions", body.clone()).await;
    check_prefill("/v1/chat/completions", &body, &prefill);
    check_decode(&body, &decode);
}

#[tokio::test]
async fn an_answer_and_its_headers_come_back_as_they_are() {
    let world = World::new(ONE_RANK).await;
    let headers = [
        ("authorization", "Bearer k"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("x-request-id", "mine, with a comma"),
        ("connection", "x-hop, close"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("x-own", "kept"),
    ];
    let answer = world.post("/v1/completions", r#"{"prompt":"p"}"#, &headers).await;
    assert_eq!(&*answer.body, engines::ANSWER.as_bytes());
    assert_eq!((answer.header("x-engine"), answer.header("x-request-id")), ("kept", "mine, with a comma"));
    for event in world.journal.events() {
        let (journal::Event::Prefill { headers, .. } | journal::Event::Decode { headers, .. }) = event else {
            continue;
        };
        assert_eq!(headers.get("authorization").unwrap(), "Bearer k");
        assert_eq!(headers.get("x-own").unwrap(), "kept");
        assert!(headers.contains_key("traceparent"));
        assert!(!headers.contains_key("x-hop") && !headers.contains_key("te"));
        assert!(headers.get("x-request-id").unwrap().to_str().unwrap().starts_with("test-"));
    }
}

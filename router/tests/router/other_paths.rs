//! Paths that are no completions: passed on to one decode engine, merged, or refused.

#![expect(clippy::wildcard_enum_match_arm, reason = "a reader looks for the events that it knows")]

use http::Method;

use crate::engines::OTHER;
use crate::journal::Event;
use crate::world::{Setup, World};

const JSON: (&str, &str) = ("content-type", "application/json");

fn others(world: &World) -> Vec<(Method, String, Vec<u8>)> {
    let other = |event| match event {
        Event::Other { method, path, body, .. } => Some((method, path, body)),
        _ => None,
    };
    world.journal.events().into_iter().filter_map(other).collect()
}

#[tokio::test]
async fn known_and_unknown_paths_go_to_one_decode_engine_as_they_are() {
    let world = World::new(Setup::default()).await;
    let body = r#"{ "input":"é\u00e9",  "x":1e400 , "n":12345678901234567890123}"#;
    for (method, path) in [
        ("POST", "/v1/embeddings"),
        ("POST", "/tokenize"),
        ("POST", "/rerank"),
        ("PUT", "/v9/unknown?a=%20b&c"),
        ("DELETE", "/v1/responses/resp_1"),
    ] {
        let answer =
            world.send(method, path, &[JSON, ("authorization", "Bearer k"), ("x-request-id", "mine")], body).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, OTHER.as_bytes()), "{path}");
        assert_eq!((answer.header("x-engine"), answer.header("x-request-id")), ("kept", "mine"));
        assert_eq!(
            (answer.header("x-kvgate-path"), answer.header("x-kvgate-local-because")),
            ("local", "proxied_path")
        );
        assert_eq!(others(&world).pop().unwrap(), (method.parse().unwrap(), path.to_owned(), body.as_bytes().to_vec()));
    }
    let passed_on = world.journal.events().into_iter().filter_map(|event| match event {
        Event::Other { headers, .. } => Some(headers),
        _ => None,
    });
    for headers in passed_on {
        assert_eq!(headers["authorization"], "Bearer k");
        assert_eq!(headers["content-type"], "application/json");
        assert!(headers["x-request-id"].to_str().unwrap().starts_with("test-"));
        assert!(headers.contains_key("x-data-parallel-rank"));
    }
    assert_eq!(world.send("GET", "/v9/broken", &[], "").await.status.as_u16(), 500, "an engine's word is its own");
    assert_eq!(world.journal.count(|event| matches!(event, Event::Prefill { .. } | Event::Asked { .. })), 0);
}

#[tokio::test]
async fn no_body_smuggles_transfer_parameters_on_another_path() {
    let world = World::new(Setup::default()).await;
    let evil = r#"{"kv\u005ftransfer_params":{"remote_host":"evil"},"prompt":"p"}"#;
    for headers in
        [&[JSON][..], &[], &[("content-type", "text/plain")], &[("content-type", "multipart/form-data"), JSON]]
    {
        assert_eq!(world.send("POST", "/inference/v1/generate", headers, evil).await.status.as_u16(), 200);
        assert_eq!(others(&world).pop().unwrap().2, br#"{"prompt":"p"}"#);
    }
    let utf16: Vec<u8> = evil.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(world.send("POST", "/inference/v1/generate", &[JSON], utf16).await.code(), "body_invalid");
    let hidden = r#"{"token_ids":[1],"sampling_params":{"extra_args":{"kv_transfer_params":{"remote_host":"evil"}}}}"#;
    assert_eq!(world.send("POST", "/inference/v1/generate", &[JSON], hidden).await.code(), "body_invalid");
    let form = "--b\r\nkv_transfer_params\r\n--b--";
    world.send("POST", "/v1/audio/transcriptions", &[("content-type", "multipart/form-data; boundary=b")], form).await;
    assert_eq!(others(&world).pop().unwrap().2, form.as_bytes());
}

#[tokio::test]
async fn what_administers_engines_or_upgrades_is_refused() {
    let world = World::new(Setup::default()).await;
    for path in ["/sleep", "/%73leep/", "/reset_prefix_cache", "/v1/load_lora_adapter", "/collective_rpc", "/pause"] {
        let answer = world.send("POST", path, &[JSON], "{}").await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (403, "path_forbidden"), "{path}");
    }
    assert_eq!(world.send("POST", "/x//sleep", &[JSON], "{}").await.status.as_u16(), 404);
    let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let answer = world.send("GET", "/v1/realtime", &upgrade, "").await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (501, "upgrade_unsupported"));
    assert!(others(&world).is_empty());
    let harmless = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")];
    assert_eq!(world.send("GET", "/v9/x", &harmless, "").await.status.as_u16(), 200);
    assert_eq!(world.send("GET", "/v1/completions", &[], "").await.status.as_u16(), 405);
}

#[tokio::test]
async fn unknown_paths_can_be_closed() {
    let world = World::new(Setup { args: "--proxy-unknown off", ..Setup::default() }).await;
    assert_eq!(world.send("GET", "/v9/x", &[], "").await.code(), "not_found");
    assert_eq!(world.send("POST", "/tokenize", &[JSON], "{}").await.status.as_u16(), 200);
}

#[tokio::test]
async fn a_redirect_names_no_engine() {
    let world = World::new(Setup::default()).await;
    let answer = world.send("GET", "/v9/moved", &[], "").await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (307, "/v9/here?a=1"));
}

#[tokio::test]
async fn an_engine_that_is_away_is_passed_over() {
    let world = World::new(Setup { dead_decode: true, ..Setup::default() }).await;
    for _ in 0..4 {
        assert_eq!(world.send("POST", "/tokenize", &[JSON], "{}").await.status.as_u16(), 200);
    }
    let models = world.get("/v1/models").await;
    assert_eq!(models.json()["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn models_are_merged() {
    let world = World::new(Setup { decode_pods: 2, ..Setup::default() }).await;
    let models = world.get("/v1/models").await.json();
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!((ids.len(), ids[0]), (3, "m"));
}

#[tokio::test]
async fn responses_and_messages_are_split_too() {
    let world = World::new(Setup::default()).await;
    let answer = world.post("/v1/responses", r#"{"input":"x","max_output_tokens":9}"#, &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-path")), (200, "pd"));
    let sent = String::from_utf8(world.journal.bodies(false).pop().unwrap()).unwrap();
    assert!(sent.starts_with(r#"{"input":"x","max_output_tokens":1,"stream":false,"#), "{sent}");
    let answer = world.post("/v1/messages", r#"{"messages":[],"max_tokens":9}"#, &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-path")), (200, "pd"));
    for body in [r#"{"input":"x","previous_response_id":"r"}"#, r#"{"input":"x","tools":[{"type":"mcp"}]}"#] {
        assert_eq!(world.post("/v1/responses", body, &[]).await.header("x-kvgate-path"), "local", "{body}");
    }
}

#[tokio::test]
async fn a_short_prompt_is_not_worth_a_transfer() {
    let world = World::new(Setup { args: "--min-prefill-tokens 10", ..Setup::default() }).await;
    let answer = world.complete(r#"{"prompt":[1,2,3,4,5,6,7,8,9]}"#).await;
    assert_eq!((answer.header("x-kvgate-path"), answer.header("x-kvgate-local-because")), ("local", "short_prompt"));
    let answer = world.complete(r#"{"prompt":[1,2,3,4,5,6,7,8,9,10]}"#).await;
    assert_eq!(answer.header("x-kvgate-path"), "pd");
}

#[tokio::test]
async fn an_engine_s_failure_on_another_path_counts_as_one() {
    let world = World::new(Setup::default()).await;
    world.send("GET", "/v9/broken", &[], "").await;
    let metrics = String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap_or_default();
    let failed = r#"router_request_ended_total{outcome="failed",path="local"} 1"#;
    assert!(metrics.lines().any(|line| line == failed), "{metrics}");
}

#[tokio::test]
async fn the_deadline_for_a_request_holds_on_other_paths_too() {
    let world = World::new(Setup { args: "--request-deadline-ms 200", ..Setup::default() }).await;
    let answer = world.send("GET", "/v9/hangs", &[], "").await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (504, "request_timeout"));
}

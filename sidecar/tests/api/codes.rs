//! Every way to be refused that a running pair can be brought to, each with its code and as documented.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method};
use serde_json::{Value, json};
use sidecar::http::MAX_BODY;
use tokio::time::{Instant, sleep};

use crate::contract::Answer;
use crate::http::Client;
use crate::world::{SHAPE, World, prefill, start};

#[track_caller]
fn expect(answer: &Answer, status: u16, code: &str, retry: &str) {
    assert_eq!(answer.problem(), (status, code.to_owned(), retry.to_owned()), "{}", answer.text);
}

#[tokio::test]
async fn what_cannot_be_read_is_refused() {
    let world = World::new();
    let sidecar = world.lonely("decode", "").await;
    let client = &sidecar.client;
    for path in ["/", "/v2/transfers", "/v1/transfers/", "/v1//ranks", "/v1/transfers/x/y", "/OPENAPI.json"] {
        expect(&client.get(path).await, 404, "not_found", "never");
    }
    for (method, path) in
        [("PUT", "/v1/transfers"), ("PATCH", "/v1/ranks"), ("OPTIONS", "/livez"), ("TRACE", "/metrics")]
    {
        let request = client.request(method.parse().unwrap(), path).body(Body::empty()).unwrap();
        expect(&client.call(request).await, 405, "method_not_allowed", "never");
    }
    for path in [
        "/v1/transfers?state=flying",
        "/v1/transfers?dp_rank=65536",
        "/v1/transfers?dp_rank=1&dp_rank=2",
        "/v1/transfers?attempt_id=two%20words",
        "/v1/transfers?slowest=-1",
        "/v1/transfers/x?wait=5",
        "/v1/transfers/x?wait=%2B5s",
        "/v1/transfers/%00",
        "/v1/transfers/%FF/trace",
        "/v1/latency?window=0s",
        "/v1/latency?by=rank,rank",
        "/v1/ranks/-1",
        "/v1/ranks/8?limit=x",
        "/v1/handles?block_offset=1.5",
        "/quietz?for=soon",
        "/quietz?wait=-1s",
    ] {
        expect(&client.get(path).await, 400, "params_invalid", "never");
    }
    for path in ["/v1/handles/x", "/v1/handles/x?dp_rank=8&reason=bored", "/v1/transfers/%20"] {
        expect(&client.delete(path).await, 400, "params_invalid", "never");
    }
    for (method, path) in [
        ("POST", "/v1/transfers"),
        ("POST", "/v1/handles"),
        ("POST", "/v1/probe"),
        ("POST", "/v1/digests"),
        ("PUT", "/v1/log-level"),
    ] {
        let method: Method = method.parse().unwrap();
        for body in [
            "",
            "{",
            "[1]",
            "[null, null]",
            "null",
            "\"text\"",
            "{\"bytes\": \"many\", \"filter\": 1}",
            "{}{}",
            "\u{7f}",
        ] {
            expect(&client.send_json(method.clone(), path, body).await, 400, "params_invalid", "never");
        }
        let large = vec![b' '; MAX_BODY + 1];
        expect(&client.send_json(method.clone(), path, large).await, 413, "too_large", "never");
        for media_type in [None, Some("text/plain"), Some("application/jsonp"), Some("multipart/form-data; boundary=x")]
        {
            let request = client.request(method.clone(), path);
            let request = media_type.into_iter().fold(request, |request, value| request.header("content-type", value));
            let answer = client.call(request.body(Body::from("{}")).unwrap()).await;
            expect(&answer, 415, "unsupported_media_type", "never");
        }
    }
    expect(&client.get("/v1/transfers/0-nothing").await, 404, "not_found", "never");
    expect(&client.get("/v1/transfers/0-nothing/trace").await, 404, "not_found", "never");
    expect(&client.delete("/v1/transfers/0-nothing").await, 404, "not_found", "never");
    expect(&client.post("/v1/transfers/0-nothing/claim", &json!({})).await, 404, "not_found", "never");
    expect(&client.get("/v1/ranks/3").await, 404, "rank_unknown", "other_target");
    expect(&client.get("/readyz").await, 503, "rank_not_ready", "other_target");
}

#[tokio::test]
async fn without_the_token_nothing_is_told() {
    let world = World::new();
    let flags = format!("--token-file {}", world.token_file().display());
    let sidecar = world.lonely("decode", &flags).await;
    let client = &sidecar.client;
    for (path, methods) in client.contract.methods() {
        let open = ["/livez", "/readyz", "/quietz"].contains(&path.as_str()) || path.starts_with("/debug");
        let query = if path == "/quietz" { "?wait=1ms" } else { "" };
        for method in methods {
            for presented in [None, Some("Bearer open-sesamo"), Some("Basic open-sesame"), Some("Bearer")] {
                let mut request = client.request(method.parse().unwrap(), &(path.replace(['{', '}'], "") + query));
                let headers = request.headers_mut().unwrap();
                headers.remove("authorization");
                if let Some(value) = presented {
                    headers.insert("authorization", value.parse().unwrap());
                }
                let answer = client.call(request.body(Body::empty()).unwrap()).await;
                if open {
                    assert!([200, 503].contains(&answer.status.as_u16()), "{path}: {}", answer.text);
                } else {
                    expect(&answer, 401, "unauthorized", "never");
                    assert_eq!(answer.headers["www-authenticate"], "Bearer");
                }
            }
        }
    }
}

#[tokio::test]
async fn names_and_traces_of_requests_come_back_or_are_replaced() {
    let world = World::new();
    let sidecar = world.lonely("decode", "").await;
    let client = &sidecar.client;
    let asked = async |name: &str, value: &[u8]| -> HeaderMap {
        let request = client.request(Method::GET, "/v1/ranks").header(name, value).body(Body::empty()).unwrap();
        client.call(request).await.headers
    };
    assert_eq!(asked("x-request-id", b"req-7/a").await["x-request-id"], "req-7/a");
    for bad in [&b""[..], b"two words", b"tab\tbed", b"\xe2\x82\xac", &[b'x'; 129]] {
        let id = asked("x-request-id", bad).await["x-request-id"].clone();
        assert!(uuid::Uuid::parse_str(id.to_str().unwrap()).is_ok(), "{id:?} for {bad:?}");
    }
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(asked("traceparent", trace.as_bytes()).await["traceparent"], trace);
    for bad in [&b""[..], b"00-0-0-00", b"\xff", trace.to_uppercase().as_bytes(), trace.replace('4', "g").as_bytes()] {
        assert!(!asked("traceparent", bad).await.contains_key("traceparent"), "{bad:?}");
    }
}

/// Changes one member of a transfer and expects its refusal.
async fn refused(client: &Client, params: &Value, change: fn(&mut Value), status: u16, code: &str, retry: &str) {
    let mut body = start(&format!("a-{code}"), params);
    change(&mut body);
    expect(&client.post("/v1/transfers", &body).await, status, code, retry);
}

#[tokio::test]
async fn transfers_that_cannot_be_are_refused_with_what_to_do() {
    let world = World::new();
    let (p, d) = (world.engine(SHAPE).await, world.engine(SHAPE).await);
    let sidecar = world.sidecar("decode", &d, "").await.ready().await;
    let (client, params) = (&sidecar.client, prefill(&p, 100).await);
    let params = &params;
    refused(client, params, |b| b["dp_rank"] = json!(1), 404, "rank_unknown", "other_target").await;
    refused(client, params, |b| b["prefill_done_age_ms"] = json!(60_000), 409, "lease_expired", "new_prefill").await;
    refused(client, params, |b| b["kv_transfer_params"]["tp_size"] = json!(2), 400, "params_invalid", "never").await;
    refused(
        client,
        params,
        |b| b["kv_transfer_params"]["do_remote_prefill"] = json!(false),
        400,
        "params_invalid",
        "never",
    )
    .await;
    refused(
        client,
        params,
        |b| b["kv_transfer_params"]["remote_engine_id"] = json!("gone"),
        502,
        "peer_changed",
        "new_prefill",
    )
    .await;
    refused(
        client,
        params,
        |b| b["kv_transfer_params"]["remote_port"] = json!(65_535),
        502,
        "peer_unreachable",
        "new_prefill",
    )
    .await;
    refused(
        client,
        params,
        |b| b["kv_transfer_params"]["remote_host"] = json!("169.254.169.254"),
        403,
        "peer_not_allowed",
        "new_prefill",
    )
    .await;
    // Another KV cache on the other side.
    let wider = world.engine("--head-size 16").await;
    let other = prefill(&wider, 300).await;
    refused(client, &other, |_| {}, 422, "layout_mismatch", "other_target").await;
    // The same key for something else.
    assert_eq!(client.post("/v1/transfers", &start("a-1", params)).await.status, 200);
    expect(
        &client.post("/v1/transfers", &start("a-1", &prefill(&p, 500).await)).await,
        409,
        "attempt_conflict",
        "never",
    );
    // A prefill pod pulls nothing, a decode pod keeps no handles of P.
    let of_p = world.sidecar("prefill", &p, "").await.ready().await;
    expect(&of_p.client.post("/v1/transfers", &start("a-2", params)).await, 400, "params_invalid", "never");
    expect(&client.delete("/v1/handles/x?dp_rank=0").await, 400, "params_invalid", "never");
    expect(&of_p.client.delete("/v1/handles/x?dp_rank=7").await, 404, "rank_unknown", "other_target");
}

#[tokio::test]
async fn what_is_under_way_ends_in_words() {
    let world = World::new();
    let (p, d) = (world.engine(SHAPE).await, world.engine(SHAPE).await);
    // Room for one prefill of 8 blocks; its read is never posted.
    let block_bytes = {
        let sidecar = world.sidecar("decode", &d, "").await.ready().await;
        sidecar.client.get("/v1/ranks/0").await.json()["staging"]["block_bytes"].as_u64().unwrap()
    };
    let flags = format!("--staging-bytes {} --staging-wait-ms 20 --fault hold-pull=600000", 9 * block_bytes);
    let sidecar = world.sidecar("decode", &d, &flags).await.ready().await;
    let client = &sidecar.client;
    let begin = async |attempt: &str, params: &Value| {
        let request = client.request(Method::POST, "/v1/transfers").header("content-type", "application/json");
        let body = Body::from(start(attempt, params).to_string());
        let begun = client.call(request.header("prefer", "respond-async").body(body).unwrap()).await;
        assert_eq!(begun.status, 202, "{}", begun.text);
        begun.headers["location"].to_str().unwrap().to_owned()
    };
    let mut short = start("a-short", &prefill(&p, 100).await);
    short["deadline_ms"] = json!(50);
    expect(&client.post("/v1/transfers", &short).await, 504, "deadline", "other_target");
    client.until("/v1/ranks", |answer| answer.json()["ranks"][0]["staging"]["used_blocks"] == 0).await;

    let first = begin("a-1", &prefill(&p, 200).await).await;
    client.until(&first, |answer| answer.json()["state"] == "in_flight" || answer.json()["state"] == "prepared").await;
    expect(
        &client.post("/v1/transfers", &start("a-2", &prefill(&p, 300).await)).await,
        429,
        "staging_full",
        "other_target",
    );
    expect(&client.post(&format!("{first}/claim"), &json!({})).await, 409, "cancelled", "never");
    assert_eq!(client.delete(&first).await.status, 200);
    let ended = client.get(&format!("{first}?wait=20s")).await.json();
    assert_eq!((&ended["state"], &ended["failure"]["code"]), (&json!("failed"), &json!("cancelled")), "{ended}");

    // Draining: what runs may end, nothing new begins.
    client.until("/v1/ranks", |answer| answer.json()["ranks"][0]["staging"]["used_blocks"] == 0).await;
    let last = begin("a-3", &prefill(&p, 400).await).await;
    sidecar.stop.cancel();
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.get("/readyz").await.problem().1 != "shutting_down" {
        assert!(Instant::now() < deadline, "it does not drain");
        sleep(Duration::from_millis(5)).await;
    }
    expect(
        &client.post("/v1/transfers", &start("a-4", &prefill(&p, 500).await)).await,
        503,
        "shutting_down",
        "other_target",
    );
    expect(&client.post("/v1/probe", &json!({})).await, 503, "shutting_down", "other_target");
    assert_eq!(client.delete(&last).await.status, 200);
    let _ended = sidecar.end().await;
}

#[tokio::test]
async fn what_is_not_what_was_sent_gets_no_receipt() {
    let world = World::new();
    let (p, d) = (world.engine(SHAPE).await, world.engine(SHAPE).await);
    let of_p = world.sidecar("prefill", &p, "").await.ready().await;
    let sidecar = world.sidecar("decode", &d, "--verify full --fault corrupt-staging").await.ready().await;
    let mut body = start("a-1", &prefill(&p, 100).await);
    body["source_sidecar"] = json!(of_p.url());
    expect(&sidecar.client.post("/v1/transfers", &body).await, 409, "digest_mismatch", "new_prefill");
}

#[tokio::test]
async fn a_request_larger_than_the_arena_goes_elsewhere() {
    let world = World::new();
    let (p, d) = (world.engine(SHAPE).await, world.engine(SHAPE).await);
    let block_bytes = {
        let sidecar = world.sidecar("decode", &d, "").await.ready().await;
        sidecar.client.get("/v1/ranks/0").await.json()["staging"]["block_bytes"].as_u64().unwrap()
    };
    let sidecar = world.sidecar("decode", &d, &format!("--staging-bytes {}", 4 * block_bytes)).await.ready().await;
    let answer = sidecar.client.post("/v1/transfers", &start("a-1", &prefill(&p, 100).await)).await;
    expect(&answer, 413, "request_exceeds_staging", "other_target");
}

//! The good answer of every operation that the description has.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};
use sidecar::model::ShutDown;

use crate::world::{SHAPE, World, complete, prefill, prompt, start};

#[tokio::test]
async fn every_operation_answers_as_documented() {
    let world = World::new();
    let (p, d) = (world.engine(SHAPE).await, world.engine(SHAPE).await);
    let of_p = world.sidecar("prefill", &p, "").await.ready().await;
    let of_d =
        world.sidecar("decode", &d, &format!("--token-file {}", world.token_file().display())).await.ready().await;

    // The router reports a prefill to P's sidecar, has it pulled by D's, and decodes.
    let params = prefill(&p, 100).await;
    let request = params["remote_request_id"].as_str().unwrap();
    let report = json!({
        "dp_rank": 0, "remote_request_id": request, "remote_engine_id": params["remote_engine_id"],
        "kv_transfer_params": params, "lease_ms": 30_000, "age_ms": 0,
    });
    let pinned = of_p.client.post("/v1/handles", &report).await;
    assert_eq!((pinned.status.as_u16(), &pinned.json()["state"]), (200, &json!("pinned")));

    let client = &of_d.client;
    let landed = client.post("/v1/transfers", &start("a-1", &params)).await;
    assert_eq!(landed.status, 200, "{}", landed.text);
    let landed = landed.json();
    let one = format!("/v1/transfers/{}", landed["transfer_id"].as_str().unwrap());
    let shown = client.get(&one).await.json();
    assert_eq!((&shown["state"], &shown["request_id"]), (&json!("landed"), &json!("label")));
    assert_eq!(shown["receipt"], landed["receipt"]);
    assert_eq!(client.post(&format!("{one}/claim"), &json!({})).await.status, 200);
    let held = client.get("/v1/handles?dp_rank=0&limit=10&block_limit=2").await.json();
    assert_eq!(held["handles"][0]["state"], "landed", "{held}");

    let prompt = prompt(100);
    let told = &landed["kv_transfer_params"];
    let decoded = complete(&d, json!({"prompt": prompt, "kv_transfer_params": told})).await;
    let unsplit = complete(&p, json!({"prompt": prompt})).await;
    assert_eq!(decoded["choices"][0]["text"], unsplit["choices"][0]["text"]);
    let done = client.until(&one, |answer| answer.json()["state"] == "done").await.json();
    assert_eq!((&done["freed"], &done["collected_by"]), (&json!("collected"), &json!(0)), "{done}");
    assert_eq!(client.delete(&one).await.json()["failure"], Value::Null);
    let ended = client.post("/v1/finished-transfers", &json!({"transfer_ids": [landed["transfer_id"], "0-x"]})).await;
    assert_eq!(ended.json(), json!({"finished": 1, "unknown": 1}));
    let read = of_p.client.delete(&format!("/v1/handles/{request}?dp_rank=0&reason=read")).await;
    assert_eq!((read.status.as_u16(), read.text.as_str()), (204, ""));

    // Nobody waits for this one; it is compared with its source.
    let second = prefill(&p, 200).await;
    let ask = json!({
        "engine_id": second["remote_engine_id"], "request_id": second["remote_request_id"],
        "block_ids": second["remote_block_ids"], "deadline_ms": 20_000,
    });
    let digests = of_p.client.post("/v1/digests", &ask).await;
    assert_eq!((digests.status.as_u16(), &digests.json()["algorithm"]), (200, &json!("xxh64-4k")), "{}", digests.text);
    let async_start = client.request(Method::POST, "/v1/transfers").header("content-type", "application/json");
    let mut body = start("a-2", &second);
    body["verify"] = json!("full");
    body["source_sidecar"] = json!(of_p.url());
    let async_start = async_start.header("prefer", "respond-async").body(Body::from(body.to_string()));
    let begun = client.call(async_start.unwrap()).await;
    assert_eq!((begun.status.as_u16(), &begun.headers["preference-applied"]), (202, &"respond-async".parse().unwrap()));
    let location = begun.headers["location"].to_str().unwrap().to_owned();
    assert_eq!(client.get(&format!("{location}?wait=20s")).await.json()["state"], "landed");

    // What an operator asks.
    let listed = client.get("/v1/transfers?state=landed&dp_rank=0&slowest=20").await.json();
    assert_eq!(listed["transfers"][0]["attempt_id"], "a-2", "{listed}");
    assert!(listed["transfers"][0]["why"]["text"].is_string(), "{listed}");
    assert_eq!(client.get("/v1/transfers?attempt_id=a-1").await.json()["transfers"][0]["state"], "done");
    let trace = client.get(&format!("{one}/trace")).await.json();
    assert!(trace["traceEvents"].as_array().is_some_and(|events| events.len() > 5), "{trace}");
    let latency = client.get("/v1/latency?window=60s&by=rank,peer,stage").await.json();
    assert_eq!((&latency["groups"][0]["stage"], &latency["groups"][0]["count"]), (&json!("queued"), &json!(2)));
    assert_eq!(client.get("/v1/latency?by=").await.json()["groups"][0]["stage"], "total");
    assert_eq!(client.get("/v1/peers").await.json()["peers"][0]["engine_id"], params["remote_engine_id"]);
    assert_eq!(client.get("/v1/ranks").await.json()["ranks"][0]["state"], "ready");
    assert_eq!(client.get("/v1/ranks/0?limit=1").await.json()["block_handles"]["total"], 1);
    let (head, first) = client.first_bytes("/v1/ranks/events").await;
    assert_eq!(head.headers["content-type"], "text/event-stream");
    assert!(first.starts_with("event: rank\n") && first.contains("\"dp_rank\":0"), "{first}");

    // The process.
    assert_eq!(client.get("/livez").await.json(), json!({ "alive": true }));
    assert_eq!(of_p.client.get("/quietz?for=0s&wait=40s").await.json(), json!({ "quiet": true, "ranks": [] }));
    assert_eq!(client.get("/version").await.json()["git_sha"], "abc");
    for accept in ["text/plain", "application/openmetrics-text"] {
        let scrape = client.request(Method::GET, "/metrics").header("accept", accept).body(Body::empty()).unwrap();
        let page = client.call(scrape).await;
        assert!(
            page.headers["content-type"].to_str().unwrap().starts_with(accept) && page.text.contains("kv_transfer_")
        );
    }
    let filter = json!({ "filter": "debug" });
    assert_eq!(client.send_json(Method::PUT, "/v1/log-level", filter.to_string()).await.json(), filter);
    assert_eq!(client.get("/v1/log-level").await.json(), filter);
    let probe = client.post("/v1/probe", &json!({ "bytes": 1 << 20, "keep_ms": 10_000 })).await;
    assert_eq!((probe.status.as_u16(), &probe.json()["pattern"]["block_bytes"]), (201, &json!(4096)));
    assert_eq!(client.delete("/v1/probe").await.status, 204);
    assert_eq!(client.get("/openapi.json").await.status, 200);
    for page in client.contract.paths().keys().filter(|path| path.starts_with("/debug")) {
        assert!(!client.get(page).await.text.is_empty(), "{page}");
    }

    let mut driven = client.driven();
    driven.extend(of_p.client.driven());
    let documented: BTreeSet<String> = client.contract.operations().into_iter().map(ToOwned::to_owned).collect();
    assert_eq!(documented.difference(&driven).collect::<Vec<_>>(), Vec::<&String>::new(), "not driven by this test");
    assert_ne!(of_p.end().await, ShutDown::Stuck);
}

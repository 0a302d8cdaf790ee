//! What an operator asks about slow transfers, over HTTP.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use sidecar::model::{Faults, Role};

use crate::landing::Path;
use crate::rig::Rig;

/// What Chrome's trace-event format asks of the events that we write (complete and metadata ones).
fn check_trace(trace: &Value) -> Vec<&Value> {
    let events = trace["traceEvents"].as_array().unwrap();
    let whole = |event: &Value, member: &str| assert!(event[member].is_u64(), "{member} is no whole number: {event}");
    let mut complete = Vec::new();
    let mut named = Vec::new();
    for event in events {
        assert!(event["name"].as_str().is_some_and(|name| !name.is_empty()), "{event}");
        whole(event, "pid");
        whole(event, "tid");
        whole(event, "ts");
        match event["ph"].as_str().unwrap() {
            "X" => {
                whole(event, "dur");
                assert!(event["cat"].is_string() && event["args"].is_object(), "{event}");
                complete.push(event);
            }
            "M" => {
                assert!(["process_name", "thread_name"].contains(&event["name"].as_str().unwrap()), "{event}");
                assert!(event["args"]["name"].is_string(), "{event}");
                named.push((event["pid"].clone(), event["tid"].clone()));
            }
            other => panic!("{other} is a phase that we do not write: {event}"),
        }
    }
    for event in &complete {
        let track = (event["pid"].clone(), event["tid"].clone());
        assert!(named.contains(&track), "a track without a name: {event}");
    }
    complete
}

#[tokio::test]
async fn a_transfer_can_be_followed_from_the_list_to_its_trace() {
    let path = Path::new(Role::Decode, Faults::default()).await;
    let mut last = Value::Null;
    for number in 0..4_u32 {
        last = path.start(&format!("a-{number}"), &path.prefill(1000 * (number + 1)).await).await;
    }
    let listed = path.rig.get("/v1/transfers?slowest=2").await.json();
    let listed = listed["transfers"].as_array().unwrap();
    assert_eq!(listed.len(), 2);
    for (query, count) in [("?limit=3", 3), ("", 4), ("?slowest=3&limit=1", 1), ("?limit=0", 0), ("?why=true", 4)] {
        let page = path.rig.get(&format!("/v1/transfers{query}")).await.json();
        let page = page["transfers"].as_array().unwrap();
        assert_eq!(page.len(), count, "{query}");
        let told = query.contains("slowest") || query.contains("why");
        assert!(page.iter().all(|transfer| transfer["why"].is_object() == told), "{query}");
    }
    for transfer in listed {
        let stage = transfer["why"]["stage"].as_str().unwrap();
        assert!(transfer["why"]["text"].as_str().unwrap().starts_with(stage), "{transfer}");
        assert!(transfer["read"]["descriptors"].as_u64().unwrap() > 0, "{transfer}");
        assert!(transfer["source"]["address"].is_string(), "{transfer}");
    }
    let one = format!("/v1/transfers/{}", last["transfer_id"].as_str().unwrap());
    let shown = path.rig.get(&one).await.json();
    let timeline = shown["timeline"].as_array().unwrap();
    assert!(shown["why"]["text"].is_string(), "{shown}");
    let trace = path.rig.get(&format!("{one}/trace")).await;
    assert_eq!(trace.headers["content-type"], "application/json");
    let trace = trace.json();
    let events = check_trace(&trace);
    let stages = &events[..5];
    for (event, span) in stages.iter().zip(timeline) {
        assert_eq!((&event["name"], &event["dur"]), (&span["stage"], &span["duration_us"]), "{trace}");
    }
    assert!(events.iter().any(|event| event["name"] == "read" && event["args"]["bytes"].as_u64() > Some(0)));
    assert_eq!(trace["otherData"]["transfer_id"], last["transfer_id"]);
    assert_eq!(path.rig.get("/v1/transfers/0-nothing/trace").await.problem().1, "not_found");
}

#[tokio::test]
async fn latency_and_peers_tell_of_the_same_transfers() {
    let path = Path::new(Role::Decode, Faults::default()).await;
    for number in 0..4_u32 {
        path.start(&format!("a-{number}"), &path.prefill(1000 * (number + 1)).await).await;
    }
    let by_stage = path.rig.get("/v1/latency?window=60s&by=peer,stage").await.json();
    let groups = by_stage["groups"].as_array().unwrap();
    let stages: Vec<_> = groups.iter().map(|group| group["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["queued", "handshake", "post", "wire", "verify"], "{by_stage}");
    for group in groups {
        assert_eq!(group["count"], 4, "{group}");
        let of = |name: &str| group[name].as_u64().unwrap();
        assert!(
            of("p50_us") <= of("p90_us") && of("p90_us") <= of("p99_us") && of("p99_us") <= of("max_us"),
            "{group}"
        );
    }
    let whole = path.rig.get("/v1/latency?by=").await.json();
    assert_eq!((&whole["groups"][0]["stage"], &whole["groups"][0]["count"]), (&json!("total"), &json!(4)));

    let peers = path.rig.get("/v1/peers").await.json();
    let peer = &peers["peers"][0];
    assert_eq!(peer["engine_id"], groups[0]["peer"]);
    assert_eq!((&peer["transfers"], &peer["handshakes"], &peer["last_error"]), (&json!(4), &json!(1), &Value::Null));
    assert!(peer["handshake_age_ms"].is_u64() && peer["bytes"].as_u64() > Some(0), "{peer}");
}

#[tokio::test]
async fn a_rank_lists_its_handles_page_by_page_and_they_add_up() {
    let path = Path::new(Role::Decode, Faults::default()).await;
    for number in 0..3_u32 {
        path.start(&format!("a-{number}"), &path.prefill(1000 * (number + 1)).await).await;
    }
    let all = path.rig.get("/v1/handles").await.json();
    let totals = &all["ranks"][0];
    assert_eq!((&all["total"], &totals["blocks"]), (&json!(3), &totals["staging"]["used_blocks"]), "{all}");
    let handle = &all["handles"][0];
    assert_eq!(handle["state"], "landed");
    let ids = handle["block_ids"]["groups"][0].as_array().unwrap().len();
    assert_eq!(u64::try_from(ids).unwrap(), handle["blocks"].as_u64().unwrap());
    let first = path.rig.get("/v1/ranks/0?limit=2&block_limit=3").await.json();
    let page = &first["block_handles"];
    assert_eq!((page["handles"].as_array().unwrap().len(), &page["next_offset"]), (2, &json!(2)), "{first}");
    assert_eq!(page["handles"][0]["block_ids"]["next_offset"], 3);
    let rest = path.rig.get("/v1/handles?limit=2&offset=2").await.json();
    assert_eq!((rest["handles"].as_array().unwrap().len(), &rest["next_offset"]), (1, &Value::Null));
}

#[tokio::test]
async fn questions_that_cannot_be_answered_are_refused_in_words() {
    let rig = Rig::decode().await;
    for path in ["/v1/latency?by=engine", "/v1/latency?window=1h", "/v1/latency?window=-", "/v1/latency?by=rank,rank"] {
        let (status, code, retry) = rig.get(path).await.problem();
        assert_eq!((status, code.as_str(), retry.as_str()), (400, "params_invalid", "never"), "{path}");
    }
    assert_eq!(rig.get("/v1/handles?limit=-1").await.problem().1, "params_invalid");
    assert_eq!(rig.delete("/v1/peers").await.problem().1, "method_not_allowed");
}

#[tokio::test]
async fn the_log_filter_is_changed_while_it_runs() {
    let rig = Rig::decode().await;
    assert_eq!(rig.get("/v1/log-level").await.text, r#"{"filter":"info"}"#);
    let put = async |filter: &str| {
        let request = Request::put("/v1/log-level").header("content-type", "application/json");
        rig.call(request.body(Body::from(json!({ "filter": filter }).to_string())).unwrap()).await
    };
    assert_eq!(put("debug").await.text, r#"{"filter":"debug"}"#);
    assert_eq!(put("sidecar=shout").await.problem().1, "params_invalid");
    assert_eq!(put(&"x".repeat(2000)).await.problem().1, "params_invalid");
    assert_eq!(rig.get("/v1/log-level").await.text, r#"{"filter":"debug"}"#, "the last good one stays");
}

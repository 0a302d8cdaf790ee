//! Every way to be refused is a problem document with its own code.

use axum::body::Body;
use axum::http::Request;
use futures_util::StreamExt as _;
use secrets::Tokens;
use serde_json::{Value, json};
use sidecar::http::MAX_BODY;
use sidecar::model::Role;
use std::io::Write as _;
use tower::ServiceExt as _;

use crate::rig::{Rig, json_request, params, transfer};

fn problem(status: u16, code: &str, retry: &str) -> (u16, String, String) {
    (status, code.to_owned(), retry.to_owned())
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist() {
    let rig = Rig::decode().await;
    let unknown = rig.get("/v2/transfers").await;
    assert_eq!(unknown.problem(), problem(404, "not_found", "never"));
    assert!(unknown.detail().contains("/v2/transfers"));

    let wrong = rig.call(Request::put("/v1/transfers").body(Body::empty()).unwrap()).await;
    assert_eq!(wrong.problem(), problem(405, "method_not_allowed", "never"));
    let allow = wrong.headers["allow"].to_str().unwrap();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");

    for path in ["/v1/transfers/t-1", "/v1/transfers/t-1?wait=1ms"] {
        assert_eq!(rig.get(path).await.problem(), problem(404, "not_found", "never"));
    }
    assert_eq!(rig.delete("/v1/transfers/t-1").await.problem(), problem(404, "not_found", "never"));
    assert_eq!(rig.post("/v1/transfers/t-1/claim", &json!({})).await.problem(), problem(404, "not_found", "never"));
}

#[tokio::test]
async fn bodies_that_cannot_be_read() {
    let rig = Rig::decode().await;
    let not_json = Request::post("/v1/transfers").header("content-type", "text/plain").body(Body::from("{}")).unwrap();
    assert_eq!(rig.call(not_json).await.problem(), problem(415, "unsupported_media_type", "never"));
    let untyped = Request::post("/v1/transfers").body(Body::from("{}")).unwrap();
    assert_eq!(rig.call(untyped).await.problem(), problem(415, "unsupported_media_type", "never"));

    for text in ["", "{", "[]", "null", "{\"attempt_id\":", "\u{1}", &"[".repeat(100_000)] {
        let answer = rig.call(json_request("/v1/transfers", text.to_owned())).await;
        assert_eq!(answer.problem(), problem(400, "params_invalid", "never"), "{text}");
    }
    let large = rig.call(json_request("/v1/transfers", vec![b' '; MAX_BODY + 1])).await;
    assert_eq!(large.problem(), problem(413, "too_large", "never"));
    assert!(large.detail().contains(&MAX_BODY.to_string()));
}

/// A body as large as one may be, whose last byte does not come.
fn unfinished() -> Body {
    let piece = futures_util::stream::iter([Ok::<_, std::io::Error>(vec![b' '; MAX_BODY])]);
    Body::from_stream(piece.chain(futures_util::stream::pending()))
}

#[tokio::test]
async fn bodies_that_would_exceed_the_sidecars_memory_are_told_to_come_back() {
    let rig = Rig::decode().await;
    let held: Vec<_> = (0..16)
        .map(|_| {
            let router = rig.router.clone();
            rig.lifecycle
                .tasks()
                .spawn(async move { router.oneshot(json_request("/v1/transfers", unfinished())).await })
        })
        .collect();
    let asked = async || rig.call(json_request("/v1/transfers", "{}")).await;
    let refused = loop {
        let answer = asked().await;
        if answer.status != 400 {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(refused.problem(), problem(429, "too_many_bodies", "other_target"));
    assert_eq!(refused.headers["retry-after"], "1");
    // What needs no body is answered all the same.
    assert_eq!(rig.get("/v1/ranks").await.status, 200);
    for one in held {
        one.abort();
        assert!(one.await.is_err_and(|ended| ended.is_cancelled()), "it still waited for its body");
    }
    assert_eq!(asked().await.problem(), problem(400, "params_invalid", "never"));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_not_waited_for() {
    let rig = Rig::decode().await;
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let answer = rig.call(json_request("/v1/transfers", Body::from_stream(never))).await;
    assert_eq!(answer.problem(), problem(408, "request_timeout", "same_target"));
}

#[tokio::test]
async fn members_that_are_missing_or_of_another_type_are_named() {
    let rig = Rig::decode().await;
    for member in ["attempt_id", "request_id", "dp_rank", "kv_transfer_params", "deadline_ms", "prefill_done_age_ms"] {
        let mut missing = transfer(8);
        missing.as_object_mut().unwrap().remove(member);
        let answer = rig.post("/v1/transfers", &missing).await;
        assert_eq!(answer.problem(), problem(400, "params_invalid", "never"), "{member}");
        assert!(answer.detail().contains(member), "{member}: {}", answer.detail());
    }
    for (member, value) in [
        ("attempt_id", json!("")),
        ("attempt_id", json!("two words")),
        ("attempt_id", json!("x".repeat(300))),
        ("request_id", json!("line\nbreak")),
        ("deadline_ms", json!(0)),
        ("deadline_ms", json!(u64::MAX)),
        ("lease_ms", json!(0)),
        ("prefill_done_age_ms", json!(u64::MAX)),
        ("kv_transfer_params", json!(null)),
        ("kv_transfer_params", json!({})),
    ] {
        let mut wrong = transfer(8);
        wrong[member] = value.clone();
        let answer = rig.post("/v1/transfers", &wrong).await;
        assert_eq!(answer.problem(), problem(400, "params_invalid", "never"), "{member}: {value}");
        assert!(answer.detail().contains(member), "{member}: {}", answer.detail());
    }
    // serde names the type and the place.
    for (member, value) in [("dp_rank", json!(-1)), ("dp_rank", json!(70_000)), ("deadline_ms", json!("soon"))] {
        let mut wrong = transfer(8);
        wrong[member] = value.clone();
        let answer = rig.post("/v1/transfers", &wrong).await;
        assert_eq!(answer.problem(), problem(400, "params_invalid", "never"), "{member}: {value}");
        assert!(answer.detail().contains("line 1 column"), "{}", answer.detail());
    }
}

#[tokio::test]
async fn parameters_of_vllm_that_are_wrong_are_named() {
    let rig = Rig::decode().await;
    for (member, value) in [
        ("remote_engine_id", json!(7)),
        ("remote_engine_id", json!("")),
        ("remote_request_id", json!("a,b")),
        ("remote_block_ids", json!("all")),
        ("remote_block_ids", json!([[1, -1]])),
        ("remote_port", json!(0)),
        ("remote_port", json!(123_456)),
        ("remote_host", json!("")),
        ("tp_size", json!("one")),
        ("remote_num_tokens", json!(-5)),
    ] {
        let mut wrong = transfer(8);
        wrong["kv_transfer_params"][member] = value.clone();
        let answer = rig.post("/v1/transfers", &wrong).await;
        assert_eq!(answer.problem(), problem(400, "params_invalid", "never"), "{member}: {value}");
        assert!(answer.detail().contains(member), "{member}: {}", answer.detail());
    }
}

#[tokio::test]
async fn ranks_of_other_pods_are_answered_with_the_owned_range() {
    let rig = Rig::decode().await;
    for answer in [rig.post("/v1/transfers", &transfer(7)).await, rig.get("/v1/ranks/10").await] {
        assert_eq!(answer.problem(), problem(404, "rank_unknown", "other_target"));
        assert!(answer.detail().contains("8 to 9"), "{}", answer.detail());
    }
    assert_eq!(rig.get("/v1/ranks/first").await.problem(), problem(400, "params_invalid", "never"));
}

#[tokio::test]
async fn a_rank_without_its_engine_takes_nothing_and_says_why() {
    let rig = Rig::decode().await;
    let answer = rig.post("/v1/transfers", &transfer(8)).await;
    assert_eq!(answer.problem(), problem(503, "rank_not_ready", "other_target"));
    assert_eq!(answer.headers["retry-after"], "1");

    let mut request = json_request("/v1/transfers", transfer(9).to_string());
    request.headers_mut().insert("prefer", "handling=strict, respond-async; wait=1".parse().unwrap());
    assert_eq!(rig.call(request).await.problem(), problem(503, "rank_not_ready", "other_target"));

    let ready = rig.get("/readyz").await;
    assert_eq!(ready.problem(), problem(503, "rank_not_ready", "other_target"));
    let ranks: Vec<Value> = ready.json()["ranks"].as_array().unwrap().clone();
    assert_eq!(ranks.iter().map(|rank| rank["dp_rank"].as_u64().unwrap()).collect::<Vec<_>>(), [8, 9]);
    assert!(
        ranks.iter().all(|rank| rank["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty())),
        "{ranks:?}"
    );
}

#[tokio::test]
async fn queries_that_cannot_be_read() {
    let rig = Rig::decode().await;
    for path in [
        "/v1/transfers?state=flying",
        "/v1/transfers?dp_rank=-1",
        "/v1/transfers?slowest=all",
        "/v1/transfers/t-1?wait=5",
        "/v1/transfers/%20",
        "/v1/handles?dp_rank=x",
    ] {
        assert_eq!(rig.get(path).await.problem(), problem(400, "params_invalid", "never"), "{path}");
    }
    assert!(rig.get("/v1/transfers?state=flying").await.detail().contains("landed"));
    assert_eq!(rig.delete("/v1/handles/r-1").await.problem(), problem(400, "params_invalid", "never"));
    assert_eq!(rig.delete("/v1/handles/%FF?dp_rank=8").await.problem(), problem(400, "params_invalid", "never"));
}

#[tokio::test]
async fn handles_are_refused_where_they_cannot_be() {
    let rig = Rig::decode().await;
    let mut report = json!({
        "dp_rank": 8, "remote_request_id": "cmpl-1-0-abc", "remote_engine_id": "engine-p0",
        "kv_transfer_params": params(), "age_ms": 1,
    });
    assert_eq!(
        rig.post("/v1/handles", &report).await.problem().1,
        "params_invalid",
        "a decode pod has no such handles"
    );
    assert_eq!(rig.delete("/v1/handles/r-1?dp_rank=8").await.problem().1, "params_invalid");

    let prefill = Rig::new(Role::Prefill, 2, 8, None).await;
    report["remote_request_id"] = json!("another");
    let answer = prefill.post("/v1/handles", &report).await;
    assert_eq!(answer.problem(), problem(400, "params_invalid", "never"));
    assert!(answer.detail().contains("remote_request_id"));
    let foreign = prefill.delete("/v1/handles/r-1?dp_rank=3").await;
    assert_eq!(foreign.problem(), problem(404, "rank_unknown", "other_target"));
}

#[tokio::test]
async fn without_the_token_only_the_probes_answer() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"open-sesame").unwrap();
    let token = Tokens::from_file(file.path()).unwrap();
    let rig = Rig::new(Role::Decode, 1, 0, Some(token)).await;

    for path in ["/v1/transfers", "/v1/ranks", "/v1/ranks/events", "/v1/handles", "/metrics", "/version", "/nowhere"] {
        let refused = rig.get(path).await;
        assert_eq!(refused.problem(), problem(401, "unauthorized", "never"), "{path}");
        assert_eq!(refused.headers["www-authenticate"], "Bearer");
    }
    let wrong = Request::get("/v1/ranks").header("authorization", "Bearer open-sesamo").body(Body::empty()).unwrap();
    assert_eq!(rig.call(wrong).await.status, 401);
    let right = Request::get("/v1/ranks").header("authorization", "Bearer open-sesame").body(Body::empty()).unwrap();
    assert_eq!(rig.call(right).await.status, 200);
    assert_eq!(rig.get("/livez").await.status, 200);
    assert_eq!(rig.get("/readyz").await.status, 503);
}

#[tokio::test]
async fn after_the_gate_nothing_new_is_taken() {
    let rig = Rig::decode().await;
    rig.pod.drain();
    rig.lifecycle.gate().cancel();
    assert_eq!(rig.post("/v1/transfers", &transfer(8)).await.problem(), problem(503, "shutting_down", "other_target"));
    assert_eq!(rig.get("/readyz").await.problem(), problem(503, "shutting_down", "other_target"));
    assert_eq!(rig.get("/livez").await.status, 200);
}

//! What can be looked at: ranks, transfers, handles, build, metrics, request ids.

use std::io::Write as _;

use axum::body::Body;
use axum::http::Request;
use secrets::Tokens;
use serde_json::json;
use sidecar::model::Role;

use crate::rig::Rig;

#[tokio::test]
async fn every_owned_rank_is_listed_with_all_its_members() {
    let rig = Rig::decode().await;
    let all = rig.get("/v1/ranks").await.json();
    let ranks = all["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 2);
    let one = rig.get("/v1/ranks/9").await.json();
    assert_eq!((&one["dp_rank"], &one["local_rank"]), (&9.into(), &1.into()));
    for member in ["state", "reasons", "load", "staging", "in_flight", "handles", "draining", "tp_size"] {
        assert!(one.get(member).is_some(), "{member}: {one}");
    }
    for member in ["capacity_blocks", "used_blocks", "quarantined_blocks", "block_bytes"] {
        assert!(one["staging"].get(member).is_some(), "{member}: {one}");
    }
    for member in ["running", "waiting", "kv_usage", "nixl_failed", "nixl_expired"] {
        assert!(one["load"].get(member).is_some(), "{member}: {one}");
    }
}

#[tokio::test]
async fn empty_lists_are_lists() {
    let rig = Rig::decode().await;
    assert_eq!(rig.get("/v1/transfers?state=landed&dp_rank=8&slowest=20").await.text, r#"{"transfers":[]}"#);
    let handles = rig.get("/v1/handles?dp_rank=8").await.json();
    assert_eq!((&handles["handles"], &handles["total"]), (&json!([]), &json!(0)));
    assert_eq!(handles["unanswered_ranks"], json!([]), "{handles}");
    assert_eq!(handles["ranks"].as_array().unwrap().len(), 1, "{handles}");
    assert_eq!(rig.get("/v1/peers").await.text, r#"{"peers":[],"transport":null}"#);
    let latency = rig.get("/v1/latency").await.json();
    assert_eq!((&latency["groups"], &latency["causes"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn the_build_says_which_nixl_it_runs_on() {
    let rig = Rig::decode().await;
    let version = rig.get("/version").await.text;
    assert_eq!(
        version,
        r#"{"version":"1.2.3","git_sha":"abc","nixl":{"path":"nixl.so","version":"1.5.1","mock":false}}"#
    );
}

#[tokio::test]
async fn a_request_id_comes_back_or_is_made() {
    let rig = Rig::decode().await;
    let named = Request::get("/nowhere").header("x-request-id", "r-7").body(Body::empty()).unwrap();
    assert_eq!(rig.call(named).await.headers["x-request-id"], "r-7");
    assert_eq!(rig.get("/livez").await.headers["x-request-id"].len(), 36);
}

#[tokio::test]
async fn metrics_have_small_labels_and_add_up() {
    let rig = Rig::decode().await;
    let answer = rig.get("/metrics").await;
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let page = answer.text;
    for line in [
        "build_info{version=\"1.2.3\",git_sha=\"abc\",nixl_version=\"1.5.1\"} 1",
        "kv_transfer_bytes_total 0",
        "kv_transfer_ended_total{outcome=\"landed\"} 0",
        "kv_transfer_ended_total{outcome=\"lease_expired\"} 0",
        "kv_transfer_duration_seconds_count{dp_rank=\"8\",stage=\"wire\"} 0",
        "kv_transfer_duration_seconds_bucket{le=\"+Inf\",dp_rank=\"9\",stage=\"collect\"} 0",
        "kv_agents_alive 1",
        "kv_transfer_in_flight{dp_rank=\"8\"} 0",
        "kv_quarantine_bytes{dp_rank=\"9\"} 0",
        "kv_late_collect_total 0",
        "kv_wrong_rank_collect_total 0",
    ] {
        assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
    }
    assert!(page.ends_with("# EOF\n"));
    let states = page.lines().filter(|line| line.starts_with("kv_rank_state{dp_rank=\"8\"")).collect::<Vec<_>>();
    assert_eq!(states.len(), 5);
    assert_eq!(states.iter().filter(|line| line.ends_with(" 1")).count(), 1, "{states:?}");
}

#[tokio::test]
async fn docs_metrics_lists_every_metric_and_no_other() {
    let page = Rig::decode().await.get("/metrics").await.text;
    crate::metrics_doc::check(&page, "Sidecar");
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_outcomes_stages_and_states_that_exist() {
    let page = Rig::decode().await.get("/metrics").await.text;
    let files =
        [include_str!("../../../deploy/prometheus/alerts.yaml"), include_str!("../../../deploy/grafana/kvgate.json")];
    for text in files.map(|text| text.replace("\\\"", "\"")) {
        for metric in ["kv_transfer_ended_total{", "kv_transfer_duration_seconds_bucket{", "kv_rank_state{"] {
            let selectors = text.split(metric).skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
            for pair in selectors.flat_map(|selector| selector.split(", ")) {
                let pair = pair.replace("!=", "=").replace("!~", "=").replace("=~", "=");
                let (label, values) = pair.split_once('=').unwrap();
                if ["outcome", "stage", "state"].contains(&label) {
                    for value in values.trim_matches('"').split('|') {
                        assert!(page.contains(&format!("{label}=\"{value}\"")), "{metric} {label} {value}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn promtool_can_read_the_page_in_either_format() {
    let rig = Rig::decode().await;
    let open = rig.get("/metrics").await;
    let asked = Request::get("/metrics").header("accept", "text/plain;version=0.0.4").body(Body::empty()).unwrap();
    let text = rig.call(asked).await;
    assert!(text.headers["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    crate::promtool::check_pages(&text.text, &open.text);
}

#[tokio::test]
async fn the_page_for_people_allows_nothing_inline_and_needs_no_token() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"open-sesame").unwrap();
    let rig = Rig::new(Role::Decode, 1, 0, Some(Tokens::from_file(file.path()).unwrap())).await;
    for (path, media_type) in
        [("/debug", "text/html"), ("/debug/page.js", "text/javascript"), ("/debug/page.css", "text/css")]
    {
        let answer = rig.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with(media_type), "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'; ") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    }
    for path in ["/debug/", "/debug/page.html", "/debug/nothing.js", "/debugger", "/v1/ranks"] {
        assert_eq!(rig.get(path).await.status, 401, "{path}");
    }
}

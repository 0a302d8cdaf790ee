//! What operators and clients are told: timelines, headers, metrics.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use crate::engines::{ANSWER, Prefills};
use crate::journal::Event;
use crate::sidecars::Transfers;
use crate::world::{Answer, Setup, World};

/// Asks until the record is there: it is kept when the answer's last byte has gone out.
async fn until(world: &World, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let asking = async {
        loop {
            let answer = world.get(path).await;
            if wanted(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asking).await.unwrap_or_else(|_| panic!("{path} does not come"))
}

/// Whether everything that a section of docs/metrics.md lists is on the page.
pub(crate) fn lists(section: &str, page: &str) -> bool {
    let page = crate::metrics_doc::live(page);
    crate::metrics_doc::listed(section).iter().all(|(name, kind)| page.get(name) == Some(kind))
}

async fn record(world: &World, id: &str) -> Value {
    until(world, &format!("/v1/requests/{id}"), |answer| answer.status.as_u16() == 200).await.json()
}

fn part<'a>(record: &'a Value, leg: &str) -> &'a Value {
    let parts = record.get("timeline").and_then(Value::as_array).unwrap();
    parts
        .iter()
        .find(|part| part.get("leg").is_some_and(|have| have == leg))
        .unwrap_or_else(|| panic!("{leg}: {record}"))
}

fn us(part: &Value, name: &str) -> u64 {
    part.get(name).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {name} in {part}"))
}

#[tokio::test]
async fn a_request_has_one_timeline_over_all_parts_with_the_sidecars_own() {
    let world = World::new(Setup::default()).await;
    world.post("/v1/completions", r#"{"prompt":"p"}"#, &[("x-request-id", "mine")]).await;
    let mine = record(&world, "mine").await;
    assert_eq!(mine, record(&world, "test-1").await, "either id finds it");
    assert_eq!((&mine["id"], &mine["path"], &mine["outcome"]), (&"test-1".into(), &"pd".into(), &"ok".into()));
    assert_eq!((&mine["status"], &mine["attempts_total"]), (&200.into(), &1.into()));
    let mut at = 0;
    for leg in ["body", "queue", "choice", "prefill", "transfer", "decode", "stream"] {
        let part = part(&mine, leg);
        assert!(us(part, "from_us") >= at && us(part, "to_us") >= us(part, "from_us"), "{leg}: {mine}");
        assert_eq!(part["complete"], true);
        at = us(part, "to_us");
    }
    assert!(us(&mine, "total_us") >= at);
    let (prefill, transfer) = (part(&mine, "prefill"), part(&mine, "transfer"));
    assert!(prefill["target"].as_str().unwrap().starts_with("prefill-0@"), "{prefill}");
    assert!(transfer["target"].as_str().unwrap().starts_with("decode-0@"), "{transfer}");
    let stages = transfer["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["queued", "handshake", "post", "wire", "verify", "landed_idle", "collect"]);
    assert!(us(&stages[0], "from_us") >= us(transfer, "from_us"));
    assert_eq!(us(&stages[3], "took_us"), 40);
    assert_eq!(part(&mine, "stream")["bytes"], ANSWER.len());
    assert_eq!(mine["attempts"][0]["transfer"]["stages_us"]["wire"], 40);
    assert!(!mine.to_string().contains("127.0.0.1"), "{mine}");
}

#[tokio::test]
async fn every_failed_attempt_says_why_and_what_came_next() {
    let world = World::new(Setup::default()).await;
    world.prefill.next(Prefills::Status(500, "{}"));
    world.decode_sidecar().next(Transfers::Problem(409, "lease_expired", "new_prefill"));
    assert_eq!(world.complete(r#"{"prompt":"p"}"#).await.header("x-kvgate-attempts"), "3");
    let record = record(&world, "test-1").await;
    let attempts = record["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 3);
    let why = |n: usize| {
        let failed = &attempts[n]["failed"];
        let word = |name: &str| failed[name].as_str().unwrap_or_default().to_owned();
        (word("leg"), word("code"), word("next"))
    };
    let words = |leg: &str, code: &str, next: &str| (leg.to_owned(), code.to_owned(), next.to_owned());
    assert_eq!(why(0), words("prefill", "prefill_failed", "new_prefill"));
    assert_eq!(why(1), words("transfer", "lease_expired", "new_prefill"));
    assert_eq!(
        attempts[1]["transfer"]["failure"]["code"], "lease_expired",
        "the sidecar's word on an unnamed transfer"
    );
    assert!(attempts[2].get("failed").is_none() && attempts[2]["transfer"]["state"] == "done");
    assert!(!record.to_string().contains("10.9.8.7"), "{record}");
    let page = world.get("/metrics").await;
    let page = std::str::from_utf8(&page.body).unwrap();
    for line in [
        "router_attempt_failed_total{leg=\"prefill\",fault=\"failed\"} 1",
        "router_attempt_failed_total{leg=\"transfer\",fault=\"refused\"} 1",
        "router_failure_step_total{step=\"new_prefill\"} 2",
        "router_request_ended_total{outcome=\"ok\",path=\"pd\"} 1",
        "router_leg_duration_seconds_count{leg=\"prefill\"} 2",
        "router_leg_duration_seconds_count{leg=\"decode\"} 1",
    ] {
        assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_on_record_with_what_was_under_way() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::Hangs);
    let request = world.start(r#"{"prompt":"p"}"#);
    world.journal.wait_for("the transfer", 1, |event| matches!(event, Event::Asked { .. })).await;
    request.abort();
    let record = record(&world, "test-1").await;
    assert_eq!((&record["outcome"], &record["status"]), (&"client_gone".into(), &Value::Null));
    let transfer = part(&record, "transfer");
    assert_eq!(transfer["complete"], false);
    assert!(us(transfer, "to_us") <= us(&record, "total_us"));
}

#[tokio::test]
async fn requests_are_listed_by_outcome_path_and_slowness() {
    let world = World::new(Setup { args: "--request-records 3", ..Setup::default() }).await;
    for body in [r#"{"prompt":"p"}"#, r#"{"prompt":"a","n":2}"#, r#"{"prompt":"p"}"#, "nonsense"] {
        world.complete(body).await;
    }
    let list = async |query: &str, count: usize| {
        let enough = |answer: &Answer| answer.json()["requests"].as_array().is_some_and(|all| all.len() == count);
        let all = until(&world, &format!("/v1/requests{query}"), enough).await.json();
        let id = |one: &Value| one["id"].as_str().unwrap().to_owned();
        all["requests"].as_array().unwrap().iter().map(id).collect::<Vec<_>>()
    };
    assert_eq!(list("", 3).await, ["test-4", "test-3", "test-2"], "the first is forgotten");
    assert_eq!(list("?outcome=client_error", 1).await, ["test-4"]);
    assert_eq!(list("?path=pd", 1).await, ["test-3"]);
    assert_eq!(list("?limit=1", 1).await, ["test-4"]);
    assert_eq!(list("?slowest=2", 2).await.len(), 2);
    for bad in ["?outcome=good", "?path=/v1", "?slowest=many"] {
        let answer = world.get(&format!("/v1/requests{bad}")).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (400, "query_invalid"));
    }
    assert_eq!(world.get("/v1/requests/test-99").await.status.as_u16(), 404);
}

#[tokio::test]
async fn clients_are_told_of_ranks_and_times_only_where_that_is_wanted() {
    let world = World::new(Setup::default()).await;
    let answer = world.complete(r#"{"prompt":"p"}"#).await;
    assert!(answer.header("x-kvgate-prefill").starts_with("prefill-0@"));
    assert!(answer.header("x-kvgate-decode").starts_with("decode-0@"));
    assert!(answer.header("x-kvgate-transfer").starts_with("t-test-1-1"));
    let timing = answer.header("server-timing");
    for name in ["queue;dur=", "prefill;dur=", "transfer;dur=", "decode;dur=", "first-byte;dur="] {
        assert!(timing.contains(name), "{timing}");
    }
    let world = World::new(Setup { debug_headers: false, ..Setup::default() }).await;
    let answer = world.complete(r#"{"prompt":"p"}"#).await;
    let told: Vec<&str> =
        answer.headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with("x-kvgate")).collect();
    assert_eq!((told, answer.header("server-timing")), (vec!["x-kvgate-path"], ""));
}

#[tokio::test]
async fn docs_metrics_lists_every_metric_and_no_other() {
    let world = World::new(Setup { args: "--peer-metrics --max-attempts 2", ..Setup::default() }).await;
    for _ in 0..2 {
        world.prefill.next(Prefills::Status(500, "{}"));
    }
    assert_eq!(world.complete(r#"{"prompt":"p"}"#).await.status.as_u16(), 502);
    assert_eq!(world.complete(r#"{"prompt":"p"}"#).await.status.as_u16(), 200);
    record(&world, "test-2").await;
    let page = String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap();
    crate::metrics_doc::check(&page, "Router");
    let text = world.get_with("/metrics", &[("accept", "text/plain;version=0.0.4")]).await;
    assert!(text.header("content-type").starts_with("text/plain; version=0.0.4"));
    crate::promtool::check_pages(std::str::from_utf8(&text.body).unwrap(), &page);
    let (p, d) = (world.prefill_url(), "router_target_ready{side=\"decode\",pod=\"0\",dp_rank=\"1\"} 1");
    for line in [
        d.to_owned(),
        "vllm_router_retries_exhausted_total{route=\"/v1/completions\"} 1".to_owned(),
        "vllm_router_pd_requests_total{route=\"/v1/completions\"} 2".to_owned(),
        format!("vllm_router_worker_health{{worker=\"{p}@0\"}} 1"),
    ] {
        assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn discovery_is_told_in_figures() {
    let world = World::new(Setup { args: "--peer-metrics --dns-discovery 100ms", ..Setup::default() }).await;
    assert_eq!(world.complete(r#"{"prompt":"p"}"#).await.status.as_u16(), 200);
    let again = |page: &Answer| {
        let page = String::from_utf8_lossy(&page.body).into_owned();
        let line = page
            .lines()
            .find(|line| line.starts_with("router_discovery_syncs_total{side=\"prefill\""))
            .map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).is_some_and(|syncs| syncs > 1)
    };
    let page = until(&world, "/metrics", again).await;
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(lists("Router with discovery", &page), "{page}");
    for line in [
        "router_discovery_pods{side=\"prefill\",source=\"dns\"} 1",
        "router_discovery_pods{side=\"decode\",source=\"dns\"} 1",
        "router_discovery_failures_total{side=\"decode\",source=\"dns\"} 0",
    ] {
        assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn a_clients_trace_goes_on_to_engines_and_sidecars() {
    let world = World::new(Setup::default()).await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("traceparent", parent), ("tracestate", "a=1")];
    world.post("/v1/completions", r#"{"prompt":"p"}"#, &headers).await;
    let is_end = |event: &Event| matches!(event, Event::Finished { .. });
    world.journal.wait_for("the transfer's end", 1, is_end).await;
    for sidecar in [&world.prefill_sidecar, &world.decode_sidecars[0]] {
        let asked = sidecar.headers.lock().clone();
        assert!(!asked.is_empty());
        for headers in asked {
            assert_eq!(
                (&headers["traceparent"], &headers["tracestate"]),
                (&parent.parse().unwrap(), &"a=1".parse().unwrap())
            );
            assert_eq!(headers["x-request-id"], "test-1-1");
        }
    }
}

/// What is logged, line by line.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_line_about_a_failed_attempt_says_which_request_it_is_about() {
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().json().with_max_level(tracing::Level::WARN).with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(log.finish());
    let world = World::new(Setup::default()).await;
    world.prefill.next(Prefills::Status(500, "{}"));
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    world.post("/v1/completions", r#"{"prompt":"p"}"#, &[("traceparent", parent)]).await;
    let text = String::from_utf8(lines.0.lock().clone()).unwrap();
    let said: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |line: &Value, pointer: &str| line.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let failed: Vec<_> = said.iter().filter(|line| of(line, "/fields/message") == "attempt failed").collect();
    let [failed] = failed.as_slice() else { panic!("{text}") };
    assert_eq!((of(failed, "/span/request_id"), of(failed, "/span/path")), ("test-1".into(), "/v1/completions".into()));
    assert_eq!((of(failed, "/span/traceparent"), of(failed, "/fields/next")), (parent.into(), "new_prefill".into()));
}

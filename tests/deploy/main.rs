//! The dashboard and the alerts of `deploy/`: they use metrics and labels that exist, and promtool accepts them.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

mod doctor_lines;
mod expressions;
#[path = "../support/promtool.rs"]
#[expect(dead_code, reason = "its other half is for pages")]
mod promtool;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use expressions::{Families, complaints};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).expect("the file is there")
}

/// What stands under a key anywhere in a document.
fn under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if name == key {
                    found.extend(member.as_str());
                }
                under(member, key, found);
            }
        }
        Value::Array(members) => members.iter().for_each(|member| under(member, key, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The expressions of a file of rules: what follows `expr:`, on its line or in the block below it.
fn rules(yaml: &str) -> Vec<String> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    let mut lines = yaml.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((_, rest)) = line.split_once("expr:") else { continue };
        let mut expression = rest.trim().trim_start_matches('|').to_owned();
        while let Some(more) = lines.next_if(|more| indent(more) > indent(line)) {
            expression.push_str(&format!(" {}", more.trim()));
        }
        found.push(expression);
    }
    found
}

fn complain(found: &[String]) {
    assert!(found.is_empty(), "not in docs/metrics.md:\n  {}", found.join("\n  "));
}

#[test]
fn the_dashboard_uses_metrics_and_labels_that_exist() {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/kvgate.json")).expect("it is JSON");
    let families = Families::documented();
    let mut expressions = Vec::new();
    under(&dashboard, "expr", &mut expressions);
    under(&dashboard, "definition", &mut expressions);
    assert!(expressions.len() > 40, "{}", expressions.len());
    complain(&expressions.iter().flat_map(|expression| complaints(&families, expression)).collect::<Vec<_>>());
}

#[test]
fn the_dashboard_shows_every_family_of_the_sidecar_and_most_of_the_router() {
    let dashboard = text("deploy/grafana/kvgate.json");
    let hidden = ["kv_transfer_started_total", "kv_lease_heartbeat_total", "kv_quarantined_bytes_total"];
    let hidden_router = [
        "router_request_duration_seconds",
        "router_stream_chunks_total",
        "router_stream_bytes_total",
        "router_requests_inside",
    ];
    let shown = |name: &&String| !dashboard.contains(name.as_str()) && !name.starts_with("vllm_router_");
    let families = Families::documented();
    let missing: BTreeSet<&str> = families.names().filter(shown).map(String::as_str).collect();
    assert_eq!(missing, hidden.into_iter().chain(hidden_router).collect());
}

#[test]
fn the_dashboards_panels_have_places_and_names_of_their_own() {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/kvgate.json")).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len());
    let place = |panel: &Value, key: &str| panel["gridPos"][key].as_u64().expect("a place");
    let places: BTreeSet<(u64, u64)> = panels.iter().map(|panel| (place(panel, "x"), place(panel, "y"))).collect();
    assert_eq!(places.len(), panels.len());
    assert!(panels.iter().all(|panel| place(panel, "x") + place(panel, "w") <= 24));
}

#[test]
fn the_alerts_use_metrics_and_labels_that_exist_and_say_what_to_do() {
    let yaml = text("deploy/prometheus/alerts.yaml");
    let families = Families::documented();
    let expressions = rules(&yaml);
    let count = |key: &str| yaml.lines().filter(|line| line.trim_start().starts_with(key)).count();
    assert!(expressions.len() >= 15);
    for key in ["- alert:", "severity:", "summary:", "description:", "runbook:"] {
        assert_eq!(count(key), expressions.len(), "{key} of every alert");
    }
    complain(&expressions.iter().flat_map(|expression| complaints(&families, expression)).collect::<Vec<_>>());
    let runbook = text("docs/alerts.md");
    let titles: BTreeSet<String> =
        runbook.lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_lowercase).collect();
    let pointers = yaml.lines().filter_map(|line| line.trim().strip_prefix("runbook: docs/alerts.md#"));
    assert_eq!(pointers.map(str::to_owned).collect::<BTreeSet<_>>(), titles, "each section is an alert's");
}

#[test]
fn promtool_accepts_the_alerts_and_they_fire_when_they_should() {
    promtool::check_rules(&["check", "rules"], &file("deploy/prometheus/alerts.yaml"));
    promtool::check_rules(&["test", "rules"], &file("deploy/prometheus/alerts.test.yaml"));
}

//! `kvgate demo` and its controls, judged by the report that each leaves.

use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{finished, kvgate, nixl_is_here, wait_for};

/// Runs the demo; its exit code and report.
fn demo(args: &str) -> Option<(i32, Value, String)> {
    if !nixl_is_here() {
        return None;
    }
    let folder = TempDir::new().expect("a temporary folder");
    let (code, text) = finished(kvgate("demo --out").arg(folder.path()).args(args.split_whitespace()));
    let report = std::fs::read(folder.path().join("report.json"));
    let report = report.unwrap_or_else(|error| panic!("demo {args} left no report ({error}) and said:\n{text}"));
    Some((code, serde_json::from_slice(&report).expect("the report is JSON"), text))
}

fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("{field} is no number in {report:#}"))
}

#[test]
fn every_text_is_right_and_every_decode_has_its_receipt() {
    let Some((code, report, text)) = demo("") else { return };
    assert_eq!(code, 0, "{text}");
    let requests = number(&report, "requests");
    assert!(requests >= 12);
    assert_eq!(number(&report, "correct"), requests, "{text}");
    assert_eq!(number(&report, "decodes_without_receipt"), 0);
    assert_eq!(number(&report, "decodes"), requests, "each request was decoded from staged KV, none locally");
    assert!(number(&report, "bytes_moved") >= 250_000_000);
    assert_eq!(report["nixl"]["mock"], false);
    assert!(report["nixl"]["path"].as_str().is_some_and(|path| path.contains("nixl")), "{report:#}");
    for stage in ["wire", "collect", "prefill", "ttft"] {
        assert!(report["stages"][stage]["p50"].as_f64().is_some_and(|ms| ms >= 0.0), "no {stage} in {report:#}");
    }
    let last = format!("demo: {requests}/{requests} correct, 0 decodes without receipt");
    assert_eq!(text.lines().rfind(|line| !line.trim().is_empty()), Some(last.as_str()));
}

/// A process that does not outlive a test that fails.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn an_interrupt_ends_everything_that_was_started() {
    if !nixl_is_here() {
        return;
    }
    let folder = TempDir::new().expect("a temporary folder");
    let demo = kvgate("demo --keep --out").arg(folder.path()).stdout(Stdio::null()).spawn().expect("the demo starts");
    let mut demo = Ended(demo);
    let port = |name: &str| {
        let ports = std::fs::read(folder.path().join(format!("{name}.ports.json"))).ok()?;
        u16::try_from(serde_json::from_slice::<Value>(&ports).ok()?["http"].as_u64()?).ok()
    };
    let router = wait_for("the router", || port("router"));
    let ports = ["prefill", "decode", "reference", "prefill-sidecar", "decode-sidecar"]
        .map(|name| port(name).expect("its port"));
    rustix::process::kill_process(rustix::process::Pid::from_child(&demo.0), rustix::process::Signal::INT)
        .expect("it runs");
    wait_for("its end", || demo.0.try_wait().expect("it can be asked"));
    for port in ports.into_iter().chain([router]) {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "port {port} still answers");
    }
}

#[test]
fn corrupted_staging_gives_other_texts() {
    let Some((code, report, text)) = demo("--fault corrupt-staging") else { return };
    assert_ne!(code, 0, "{text}");
    assert_eq!(number(&report, "wrong_texts"), number(&report, "requests"), "{text}");
}

#[test]
fn a_router_that_skips_the_gate_is_seen() {
    let Some((code, report, text)) = demo("--fault skip-gate") else { return };
    assert_ne!(code, 0, "{text}");
    assert!(number(&report, "decodes_without_receipt") > 0, "{text}");
}

#[test]
fn a_decode_on_another_rank_is_refused_and_noticed() {
    let Some((code, report, text)) = demo("--fault wrong-rank") else { return };
    assert_eq!(code, 0, "{text}");
    assert_eq!(number(&report, "correct") + number(&report, "wrong_texts"), 0, "{text}");
    assert!(text.contains("collected_by 1"), "{text}");
}

#[test]
fn a_peer_with_a_slow_wire_is_named_as_the_cause() {
    let Some((code, report, text)) = demo("--fault slow-wire") else { return };
    assert_eq!(code, 0, "{text}");
    assert_eq!(number(&report, "correct"), number(&report, "requests"), "slow, but right: {text}");
    let notes: Vec<_> = report["notes"].as_array().expect("notes").iter().filter_map(Value::as_str).collect();
    let said = |start: &str| notes.iter().find_map(|note| note.strip_prefix(start)).unwrap_or_else(|| panic!("{text}"));
    let peer = said("control slow-wire: the slow peer is ");
    assert!(peer.ends_with("_dp0"), "{peer}");
    let cause = said("control slow-wire: /v1/latency says, as it must: ");
    assert!(cause.starts_with("wire: ") && cause.contains(peer), "{cause}");
    let why = said("control slow-wire: the slowest transfer says, as it must: ");
    assert!(why.starts_with("wire: ") && why.contains("descriptors") && why.contains("UCX"), "{why}");
}

#[test]
fn a_lease_that_is_over_gives_no_receipt_and_no_wrong_text() {
    let Some((code, report, text)) = demo("--fault expired-lease") else { return };
    assert_eq!(code, 0, "{text}");
    assert_eq!(number(&report, "wrong_texts"), 0, "{text}");
    assert_eq!(number(&report, "decodes_without_receipt"), 0, "{text}");
    assert_eq!(number(&report, "receipts"), 0, "every pull is held past the lease: {text}");
    assert!(number(&report, "clear_errors") > 0, "the fault showed: {text}");
}

#[test]
fn without_the_gate_the_same_fault_gives_wrong_texts() {
    let Some((code, report, text)) = demo("--fault expired-lease --gate direct") else { return };
    assert_ne!(code, 0, "{text}");
    assert!(number(&report, "wrong_texts") > 0, "{text}");
}

#[test]
fn verified_transfers_give_right_texts_and_say_so_in_their_receipts() {
    let Some((code, report, text)) = demo("--verify sample:4") else { return };
    assert_eq!(code, 0, "{text}");
    assert_eq!(number(&report, "correct"), number(&report, "requests"), "{text}");
    assert_eq!(report["verify"], "sample:4");
    assert!(report["stages"]["verify"]["p50"].as_f64().is_some_and(|ms| ms > 0.0), "{report:#}");
}

#[test]
fn corrupted_staging_gives_no_wrong_text_when_it_is_verified() {
    let Some((code, report, text)) = demo("--verify full --fault corrupt-staging") else { return };
    assert_eq!(code, 0, "{text}");
    assert_eq!(number(&report, "wrong_texts"), 0, "{text}");
    assert_eq!(number(&report, "receipts"), 0, "{text}");
    assert_eq!(number(&report, "clear_errors"), number(&report, "requests"), "{text}");
    assert!(text.contains("digest_mismatch"), "{text}");
}

#[test]
fn blocks_overwritten_before_they_are_read_give_no_wrong_text_when_they_are_verified() {
    let Some((code, report, text)) = demo("--verify full --fault overwritten-blocks") else { return };
    assert_eq!(code, 0, "{text}");
    assert_eq!(number(&report, "wrong_texts"), 0, "{text}");
    assert_eq!(number(&report, "correct"), number(&report, "requests"), "the router goes elsewhere: {text}");
    let notes: Vec<_> = report["notes"].as_array().expect("notes").iter().filter_map(Value::as_str).collect();
    let mismatches =
        notes.iter().find_map(|note| note.split(" transfers ended as digest_mismatch").next()?.rsplit(' ').next());
    assert!(mismatches.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count > 0), "{text}");
}

#[test]
fn blocks_overwritten_before_they_are_read_give_wrong_texts_when_nothing_is_compared() {
    let Some((code, report, text)) = demo("--fault overwritten-blocks") else { return };
    assert_ne!(code, 0, "{text}");
    assert!(number(&report, "wrong_texts") > 0, "{text}");
}

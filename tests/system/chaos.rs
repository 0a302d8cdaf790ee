//! A share of `make chaos`: every kind of process is killed and frozen once, by a fixed seed, under 64 streams over real NIXL.

#![expect(clippy::print_stdout, reason = "figures, and what is skipped")]

use std::path::Path;
use std::process::{Command, Stdio};

use parking_lot::Mutex;
use serde_json::Value;

use crate::process::nixl_is_here;

/// A run of about 20 s.
const SEED: &str = "8";
const KINDS: [&str; 5] = ["prefill engine", "prefill sidecar", "decode engine", "decode sidecar", "router"];

/// Two at a time would take one another's ports.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn python_is_here() -> bool {
    let found = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
    let here = found.is_ok_and(|status| status.success());
    if !here {
        println!("SKIPPED: no python3");
    }
    here
}

/// The report of one run, and whether it ended well.
fn chaos(args: &[&str]) -> (bool, Value) {
    let _alone = ONE_AT_A_TIME.lock();
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let into = folder.path().join("chaos");
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/run.py");
    let mut python = Command::new("python3");
    python.arg(run).args(["--binary", env!("CARGO_BIN_EXE_kvgate"), "--into"]).arg(&into).args(args);
    let said = python.stdin(Stdio::null()).output().expect("it starts");
    println!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    let report = std::fs::read(into.join("report.json")).expect("a report");
    (said.status.success(), serde_json::from_slice(&report).expect("JSON"))
}

#[test]
fn each_kind_of_process_is_killed_and_frozen_under_64_streams_and_every_promise_is_kept() {
    if !nixl_is_here() || !python_is_here() {
        return;
    }
    let (well, report) = chaos(&["--seed", SEED, "--once", "--least", "300"]);
    assert!(well, "{}", report["broken"]);
    for must in ["wrong", "hung", "leaked_slots", "decodes_without_receipt"] {
        assert_eq!(report[must], 0, "{must}");
    }
    for fault in KINDS.iter().flat_map(|kind| [format!("kill {kind}"), format!("freeze {kind}")]) {
        assert_eq!(report["faults"][&fault], 1, "{fault}");
    }
    let count = |what: &str| report[what].as_u64().expect("a count");
    assert!(count("right") * 3 > count("requests"), "most of it works most of the time");
    assert!(count("decodes") > 100, "and by the gate");
}

/// The control: what must be seen is seen when it is there.
#[test]
fn a_router_without_its_gate_is_found_out_by_what_engines_and_sidecars_wrote_down() {
    if !nixl_is_here() || !python_is_here() {
        return;
    }
    let (well, report) = chaos(&["--seed", SEED, "--seconds", "2", "--least", "1", "--control", "skip-gate"]);
    assert!(!well, "{report}");
    assert!(report["decodes_without_receipt"].as_u64().is_some_and(|count| count > 0), "{report}");
}

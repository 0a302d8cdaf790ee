//! `scripts/fetch-nixl` refuses what it cannot check, before anything is downloaded.

use std::path::Path;
use std::process::Command;

#[test]
fn what_is_not_pinned_or_not_understood_is_refused() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/fetch-nixl");
    if !Command::new("python3").arg("--version").output().is_ok_and(|run| run.status.success()) {
        println!("SKIPPED: no python3");
        return;
    }
    for (wheel, digest, words) in [
        ("nixl-cu13", "", "expected NAME==VERSION"),
        ("nixl-cu13==1.5.1 --index-url x", "", "expected NAME==VERSION"),
        ("../nixl==1", "", "expected NAME==VERSION"),
        ("nixl-cu13==99.0.0", "", "is not pinned here: set NIXL_WHEEL_SHA256"),
        ("nixl-cu13==1.5.1", "abc", "is not a sha256"),
    ] {
        let mut command = Command::new("python3");
        command.arg(&script).env("NIXL_WHEEL", wheel).env("NIXL_WHEEL_SHA256", digest);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{wheel}: {text}");
        assert!(text.contains(words), "{wheel}: {text}");
    }
}

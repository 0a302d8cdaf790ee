//! Prometheus' own checker, as `scripts/fetch-promtool` (`make setup`) puts it below `target`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where promtool is, if it is there; a test without it says so and passes, unless REQUIRE holds `browser`, the word for the tools that
/// are fetched for tests.
#[expect(clippy::print_stdout, reason = "this is how tests report")]
fn promtool() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = here.ancestors().take(2).map(|root| root.join("target/promtool/promtool")).find(|tool| tool.exists());
    if place.is_none() {
        let required = std::env::var_os("REQUIRE").unwrap_or_default();
        let required = required.to_string_lossy().split(',').any(|what| what.trim() == "browser");
        assert!(!required, "REQUIRE=browser: no promtool; run scripts/fetch-promtool");
        println!("SKIPPED: no promtool; run scripts/fetch-promtool");
    }
    place
}

/// Runs `promtool ARGS FILE` on a text; it must have nothing to say against it.
fn approves(tool: &Path, args: &[&str], file: &Path, more: &[&Path]) {
    let input = std::fs::File::open(file).expect("the file is there");
    let mut command = Command::new(tool);
    command.args(args).stdin(input);
    if !args.contains(&"metrics") {
        command.arg(file).args(more);
    }
    let output = command.output().expect("promtool runs");
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    assert!(output.status.success(), "promtool {args:?} {}: {said}", file.display());
}

/// Both formats of a page of metrics: Prometheus' text as its linter wants it, OpenMetrics as Prometheus reads it.
pub(crate) fn check_pages(prometheus: &str, openmetrics: &str) {
    let Some(tool) = promtool() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (text, open, blocks) = (folder.path().join("text"), folder.path().join("open"), folder.path().join("blocks"));
    std::fs::write(&text, prometheus).expect("the page is written");
    approves(&tool, &["check", "metrics"], &text, &[]);
    // The reader of OpenMetrics is the one that back-fills; it wants a time on each sample.
    let timed =
        openmetrics.lines().map(|line| if line.starts_with('#') { line.to_owned() } else { format!("{line} 1") });
    let timed: Vec<String> = timed.collect();
    std::fs::write(&open, format!("{}\n", timed.join("\n"))).expect("the page is written");
    approves(&tool, &["tsdb", "create-blocks-from", "openmetrics"], &open, &[&blocks]);
}

/// A file of alerts or of their tests.
pub(crate) fn check_rules(args: &[&str], file: &Path) {
    if let Some(tool) = promtool() {
        approves(&tool, args, file, &[]);
    }
}

//! schemathesis (PyPI) holds a running sidecar against its `/openapi.json`: requests made from the schemas, right and wrong ones.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::world::{SHAPE, TOKEN, World};

/// Far more than it takes.
const AT_MOST: Duration = Duration::from_secs(180);

/// A stream that does not end, which it cannot wait for; `every_endpoint` reads it.
const STREAM: &str = "/v1/ranks/events";

/// Where it is, or why not; a test without it says so and passes, unless REQUIRE holds `browser`, the word for the tools that
/// scripts fetch.
#[expect(clippy::print_stdout, reason = "this is how tests report")]
fn require() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tests/schemathesis-venv");
    let program = folder.join("bin/schemathesis");
    if folder.join(".complete").is_file() {
        return Some(program);
    }
    let required = std::env::var_os("REQUIRE").unwrap_or_default();
    let required = required.to_string_lossy().split(',').any(|what| what.trim() == "browser");
    assert!(!required, "REQUIRE=browser: no schemathesis; run scripts/fetch-schemathesis");
    println!("SKIPPED: no schemathesis (scripts/fetch-schemathesis)");
    None
}

/// Runs it and returns what it says at the end, when it is content.
async fn run(program: &Path, url: &str, of: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/schemathesis.toml");
    let mut command = Command::new(program);
    command.arg("--config-file").arg(config).arg("run").arg(format!("{url}/openapi.json"));
    command.args(["--header", &format!("Authorization:Bearer {TOKEN}"), "--exclude-path", STREAM]);
    command.args(["--include-path-regex", of]);
    let log = folder.path().join("log");
    command.current_dir(folder.path()).stdin(Stdio::null()).stdout(File::create(&log).unwrap());
    let mut process = command.stderr(File::create(folder.path().join("errors")).unwrap()).spawn().unwrap();
    let deadline = Instant::now() + AT_MOST;
    let ended = loop {
        if let Some(ended) = process.try_wait().unwrap() {
            break Some(ended);
        }
        if Instant::now() > deadline {
            process.kill().unwrap();
            process.wait().unwrap();
            break None;
        }
        sleep(Duration::from_millis(50)).await;
    };
    let said = std::fs::read_to_string(&log).unwrap();
    let errors = std::fs::read_to_string(folder.path().join("errors")).unwrap();
    assert!(ended.is_some_and(|ended| ended.success()), "it ended with {ended:?}:\n{said}\n{errors}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_and_a_prefill_sidecar_do_what_their_description_says() {
    let Some(program) = require() else { return };
    let world = World::new();
    let flags = format!("--token-file {}", world.token_file().display());
    // The page's files take nothing. A prefill pod's are those that a decode pod refuses.
    for (role, of) in [("decode", "^/(?!debug)"), ("prefill", "^/v1/(handles|digests)")] {
        let engine = world.engine(SHAPE).await;
        let sidecar = world.sidecar(role, &engine, &flags).await.ready().await;
        let said = run(&program, &sidecar.url(), of).await;
        let last = said.lines().rev().find(|line| line.contains("passed")).unwrap_or_default();
        println!("{role}: {}", last.trim_matches(['=', ' ']));
        assert_eq!(sidecar.client.get("/livez").await.status, 200, "it is well afterwards");
    }
}

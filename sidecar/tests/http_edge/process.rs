//! From the command line to the end of the process, without NIXL.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use sidecar::config::{Args, Settings};
use sidecar::lifecycle::Budgets;
use sidecar::model::{ReceiptSink as _, ShutDown};
use sidecar::receipt_log::ReceiptLog;
use sidecar::run::{RunError, bind, run, run_parts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::rig;

const SOON: Duration = Duration::from_secs(20);

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(more: &[&str]) -> Args {
    let least = ["sidecar", "--role", "decode", "--engine", "http://127.0.0.1:1"];
    Cli::try_parse_from(least.iter().chain(more)).unwrap().args
}

fn settings(more: &[&str]) -> Settings {
    args(more).settings().unwrap()
}

fn chain(error: &RunError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[tokio::test]
async fn an_impossible_command_line_ends_with_64() {
    let error =
        run(args(&["--listen", "0.0.0.0:0"]), "abc", rig::log_filter(), CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(chain(&error).contains("--token-file"), "{}", chain(&error));
}

#[tokio::test]
async fn a_taken_port_is_named_and_ends_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error =
        run(args(&["--listen", &address]), "abc", rig::log_filter(), CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let said = chain(&error);
    assert!(said.contains(&address) && said.contains("--listen") && said.contains("in use"), "{said}");
}

#[tokio::test]
async fn a_nixl_that_is_not_there_is_named_and_ends_with_1() {
    let error = run(
        args(&["--listen", "127.0.0.1:0", "--nixl-library", "/no/such/libnixl_capi.so"]),
        "abc",
        rig::log_filter(),
        CancellationToken::new(),
    )
    .await
    .unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(chain(&error).contains("/no/such/libnixl_capi.so"), "{}", chain(&error));
}

#[tokio::test]
async fn a_receipt_log_that_cannot_be_opened_is_named() {
    let error =
        run(args(&["--receipt-log", "/no/such/folder/log"]), "abc", rig::log_filter(), CancellationToken::new())
            .await
            .unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(chain(&error).contains("/no/such/folder/log"));
}

async fn whole_file(path: &Path) -> Value {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return serde_json::from_str(&text).unwrap();
        }
        assert!(tokio::time::Instant::now() < deadline, "no ports file");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn get(port: u16, path: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_process_can_be_talked_to_when_the_ports_file_is_there_and_ends_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ports.json");
    let settings = settings(&[
        "--listen",
        "127.0.0.1:0",
        "--side-channel-listen",
        "127.0.0.1:0",
        "--data-parallel-size",
        "2",
        "--staging-bytes",
        "1MiB",
        "--ports-file",
        path.to_str().unwrap(),
    ]);
    let listener = bind(settings.listen).await.unwrap();
    let stop = CancellationToken::new();
    let budgets = Budgets { drain: Duration::from_secs(1), ..Budgets::default() };
    let process = run_parts(settings, listener, rig::parts(), (rig::build(), rig::log_filter()), budgets, stop.clone());
    let client = async {
        let ports = whole_file(&path).await;
        let port = u16::try_from(ports["http"].as_u64().unwrap()).unwrap();
        assert_eq!(ports["side_channel"].as_array().unwrap().len(), 2, "{ports}");
        assert!(get(port, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(port, "/v1/ranks").await.contains("\"dp_rank\":1"));
        stop.cancel();
        port
    };
    let (outcome, port) = timeout(SOON, async { tokio::join!(process, client) }).await.unwrap();
    assert_eq!(outcome.unwrap(), ShutDown::Drained);
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "the port is free again");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside the ports file");
}

#[tokio::test]
async fn the_whole_process_runs_on_the_real_library_and_says_which() {
    let Some(nixl) = nixl_sys::testing::require_nixl() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ports.json");
    let args = args(&[
        "--listen",
        "127.0.0.1:0",
        "--side-channel-listen",
        "127.0.0.1:0",
        "--staging-bytes",
        "1MiB",
        "--ports-file",
        path.to_str().unwrap(),
        "--nixl-library",
        nixl.origin().path.parent().unwrap().to_str().unwrap(),
    ]);
    let stop = CancellationToken::new();
    let client = async {
        let port = u16::try_from(whole_file(&path).await["http"].as_u64().unwrap()).unwrap();
        let version = get(port, "/version").await;
        assert!(version.contains("libnixl_capi.so") && version.contains(&nixl.origin().version), "{version}");
        stop.cancel();
    };
    let (ended, ()) =
        timeout(SOON, async { tokio::join!(run(args, "abc", rig::log_filter(), stop.clone()), client) }).await.unwrap();
    ended.unwrap();
}

#[tokio::test]
async fn a_ports_file_that_cannot_be_written_ends_the_process() {
    let settings = settings(&["--side-channel-listen", "127.0.0.1:0", "--ports-file", "/no/such/folder/ports"]);
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let ending = run_parts(
        settings,
        listener,
        rig::parts(),
        (rig::build(), rig::log_filter()),
        Budgets::default(),
        CancellationToken::new(),
    );
    let error = timeout(SOON, ending).await.unwrap().unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(chain(&error).contains("/no/such/folder/ports"));
}

#[tokio::test]
async fn receipts_are_appended_one_line_each() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("receipts.jsonl");
    std::fs::write(&path, "{\"of\":\"an earlier run\"}\n").unwrap();
    let log = ReceiptLog::open(&path).unwrap();
    log.record(Arc::new(rig::landed("t-1"))).await.unwrap();
    log.record(Arc::new(rig::landed("t-2"))).await.unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    let mut second = lines[2].clone();
    let at = second.as_object_mut().unwrap().remove("at_us").unwrap().as_u64().unwrap();
    assert!(at > 1_600_000_000_000_000, "microseconds since 1970: {at}");
    assert_eq!(
        second,
        json!({
            "transfer_id": "t-2", "attempt_id": "attempt-1", "dp_rank": 8, "virtual_engine_id": "virtual-8",
            "request_id": "kvgate-1", "blocks": 3, "bytes": 4096,
        })
    );
}

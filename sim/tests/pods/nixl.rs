//! The same over real NIXL, real sockets and `sim::run`.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use serde_json::Value;
use side_channel::Zmq;
use sim::config::Args;
use sim::run::NixlAgents;
use sim::seams::Seams;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::rig::{loopback, pod, prompt, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn pulled_texts_equal_computed_ones_over_nixl() {
    let Some(api) = nixl_sys::testing::require_nixl() else { return };
    for flags in ["--tensor-parallel-size 1", "--tensor-parallel-size 2"] {
        let agents = Arc::new(NixlAgents::new(api, Vec::new()));
        let seams = Seams { agents, side_channel: Arc::new(Zmq::default()) };
        let (p, d) = (pod(&seams, flags).await, pod(&seams, flags).await);
        let reference = pod(&loopback(), flags).await;
        for tokens in [1, 5, 200] {
            let prompt = prompt(tokens, tokens);
            let params = p.prefill(&prompt).await;
            assert_eq!(d.decode(&prompt, &params).await, reference.plain(&prompt).await, "{tokens} tokens, {flags}");
        }
        wait_for("P's blocks are free", || p.stats().used_blocks.get() == 0).await;
        assert_eq!(p.stats().expired.get(), 0);
        assert!(d.pod.stop(Duration::from_secs(5)).await);
        assert!(p.pod.stop(Duration::from_secs(5)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_says_its_ports_serves_and_ends() {
    if nixl_sys::testing::require_nixl().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ports = dir.path().join("ports.json");
    let line = format!(
        "sim --listen 127.0.0.1:0 --side-channel 127.0.0.1:0 --layers 2 --num-blocks 64 --data-parallel-size 2 --ports-file {}",
        ports.display()
    );
    let args = Args::try_parse_from(line.split_whitespace()).unwrap();
    let (stop, tasks) = (CancellationToken::new(), tokio_util::task::TaskTracker::new());
    let running = tasks.spawn(sim::run(args, stop.clone()));
    wait_for("the ports file", || ports.exists()).await;
    let ports: Value = serde_json::from_str(&std::fs::read_to_string(&ports).unwrap()).unwrap();
    assert_eq!(ports["side_channel"].as_array().unwrap().len(), 2);
    let port = u16::try_from(ports["http"].as_u64().unwrap()).unwrap();
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    connection.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(r#"{"version":"0.32.0"}"#), "{answer}");
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(20), running).await.expect("it ends in time");
    ended.unwrap().unwrap();
}

#[tokio::test]
async fn a_taken_port_and_a_wrong_library_are_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = Args::try_parse_from(["sim", "--listen", &address]).unwrap();
    let error = sim::run(args, CancellationToken::new()).await.unwrap_err();
    assert_eq!((error.to_string(), error.exit_code()), (format!("listen for HTTP on {address}"), 1));
    let args = Args::try_parse_from(["sim", "--listen", "127.0.0.1:0", "--num-blocks", "1"]).unwrap();
    assert_eq!(sim::run(args, CancellationToken::new()).await.unwrap_err().exit_code(), 64);
}

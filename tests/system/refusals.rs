//! Bad input to real processes: a clear answer each time, nothing crashed, nothing lost.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::process::{Running, finished, free_ports, kvgate, nixl_is_here, wait_for};

/// A decode engine with its sidecar, ready.
struct Pod {
    engine: Running,
    sidecar: Running,
}

fn pod(engine_args: &str, sidecar_args: &str) -> Pod {
    let base = free_ports(2);
    let engine = Running::start(&format!(
        "sim --role decode --listen 127.0.0.1:0 --side-channel 127.0.0.1:{base} --data-parallel-size 2 --num-blocks 16 {engine_args}"
    ));
    let sidecar = Running::start(&format!(
        "sidecar --role decode --engine http://127.0.0.1:{} --engine-side-channel 127.0.0.1:{base} --data-parallel-size 2 \
         --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging-bytes 16MiB --staging-wait-ms 100 {sidecar_args}",
        engine.http
    ));
    Pod { engine, sidecar }
}

impl Pod {
    fn wait_until_ready(&self) {
        wait_for("two ready ranks", || {
            (self.states().iter().filter(|state| *state == "ready").count() == 2).then_some(())
        });
    }

    fn states(&self) -> Vec<String> {
        states(&self.sidecar)
    }

    fn refused(&self, body: &str, status: u16, code: &str) {
        let (got, problem) = self.sidecar.request("POST", "/v1/transfers", body);
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{body}\n{problem:#}");
        assert!(problem["detail"].as_str().is_some_and(|words| !words.is_empty()), "{problem:#}");
    }
}

fn states(sidecar: &Running) -> Vec<String> {
    let (_, body) = sidecar.request("GET", "/v1/ranks", "");
    let ranks = body["ranks"].as_array().expect("a list of ranks");
    ranks.iter().map(|rank| rank["state"].as_str().unwrap_or_default().to_owned()).collect()
}

/// A transfer that is right in form; its producer does not exist.
fn transfer(change: impl FnOnce(&mut Value)) -> String {
    let mut body = json!({
        "attempt_id": "attempt-1", "request_id": "client-1", "dp_rank": 0, "deadline_ms": 2_000, "lease_ms": 30_000,
        "prefill_done_age_ms": 5,
        "kv_transfer_params": {
            "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[1, 2]], "remote_engine_id": "nobody",
            "remote_request_id": "cmpl-1", "remote_host": "127.0.0.1", "remote_port": 65_535, "tp_size": 1, "remote_num_tokens": 20,
        },
    });
    change(&mut body);
    body.to_string()
}

#[test]
fn bad_transfers_are_refused_by_name_and_the_pod_lives_on() {
    if !nixl_is_here() {
        return;
    }
    let pod = pod("", "");
    pod.wait_until_ready();
    pod.refused("{ not json", 400, "params_invalid");
    let params = |change: fn(&mut Value)| transfer(move |body| change(&mut body["kv_transfer_params"]));
    pod.refused(&params(|p| drop(p.as_object_mut().unwrap().remove("remote_engine_id"))), 400, "params_invalid");
    pod.refused(&params(|p| p["remote_block_ids"] = json!([[1, "x"]])), 400, "params_invalid");
    pod.refused(&params(|p| p["remote_block_ids"] = json!([[1, 1]])), 400, "params_invalid");
    pod.refused(&params(|p| p["remote_block_ids"] = json!([])), 400, "params_invalid");
    pod.refused(&params(|p| p["remote_num_tokens"] = json!(999)), 400, "params_invalid");
    pod.refused(&params(|p| p["remote_port"] = json!(700_000)), 400, "params_invalid");
    pod.refused(&transfer(|body| body["dp_rank"] = json!(7)), 404, "rank_unknown");
    pod.refused(
        &params(|p| {
            p["remote_block_ids"] = json!([(0..4000).collect::<Vec<u32>>()]);
            p["remote_num_tokens"] = json!(64_000);
        }),
        413,
        "request_exceeds_staging",
    );
    pod.refused(&params(|p| p["remote_port"] = json!(22)), 403, "peer_not_allowed");
    pod.refused(&params(|p| p["remote_host"] = json!("169.254.169.254")), 403, "peer_not_allowed");
    pod.refused(&transfer(|_| ()), 502, "peer_unreachable");
    pod.refused(&format!("\"{}\"", "x".repeat(64 << 20)), 413, "too_large");
    assert_eq!(pod.sidecar.request("GET", "/nowhere", "").0, 404);
    assert_eq!(pod.sidecar.request("PUT", "/v1/ranks", "").0, 405);
    assert_eq!(pod.states(), ["ready", "ready"], "{}", pod.sidecar.log());
    assert_eq!(pod.sidecar.request("GET", "/livez", "").0, 200);
    let Pod { engine, sidecar } = pod;
    drop(engine);
    wait_for("ranks that are not ready", || states(&sidecar).iter().all(|state| state != "ready").then_some(()));
    assert_eq!(sidecar.terminate(), 0);
}

#[test]
fn an_engine_of_another_version_is_never_asked_on_its_side_channel() {
    if !nixl_is_here() {
        return;
    }
    let pod = pod("--vllm-version 0.11.0", "");
    let reasons = wait_for("a reason", || {
        let (_, body) = pod.sidecar.request("GET", "/v1/ranks", "");
        let ranks = body["ranks"].as_array().cloned()?;
        let words = ranks[0]["reasons"].to_string();
        words.contains("0.11.0").then_some(words)
    });
    assert!(reasons.contains("0.32.0"), "the supported range is named: {reasons}");
    assert_eq!(pod.sidecar.request("GET", "/readyz", "").0, 503);
}

#[test]
fn staging_that_the_host_cannot_hold_over_all_ranks_is_refused_at_start() {
    if !nixl_is_here() {
        return;
    }
    let (code, text) = finished(&mut kvgate(
        "sidecar --role decode --engine http://127.0.0.1:1 --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 \
         --data-parallel-size 1000 --staging-bytes 1024GiB",
    ));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("1000 ranks") && text.contains("--staging-bytes"), "{text}");
}

/// A listener that notes who comes.
fn trap() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("it does not block");
    let port = listener.local_addr().expect("its address").port();
    (listener, port)
}

#[test]
fn a_forged_peer_is_refused_by_name_and_never_connected_to() {
    if !nixl_is_here() {
        return;
    }
    let ((forbidden, port), (_silent, allowed)) = (trap(), trap());
    let guarded = pod("", &format!("--peer-allow 127.0.0.1/32:{allowed},10.0.0.0/8:5600-5700"));
    guarded.wait_until_ready();
    let peer = |host: &str, port: u16| {
        transfer(|body| {
            // The same attempt would be answered as it was before.
            body["attempt_id"] = json!(format!("{host}-{port}"));
            body["kv_transfer_params"]["remote_request_id"] = json!(format!("cmpl-{host}-{port}"));
            body["kv_transfer_params"]["remote_host"] = json!(host);
            body["kv_transfer_params"]["remote_port"] = json!(port);
        })
    };
    for host in ["127.0.0.1", "::ffff:127.0.0.1", "localhost", "127.1", "2130706433"] {
        guarded.refused(&peer(host, port), 403, "peer_not_allowed");
    }
    guarded.refused(&peer("10.0.0.1", 22), 403, "peer_not_allowed");
    guarded.refused(&peer("0.0.0.0", allowed), 403, "peer_not_allowed");
    // The sidecar that is to be asked for digests comes with the request as well, whether by address or by name.
    for host in ["127.0.0.1", "localhost"] {
        let forged = transfer(|body| {
            body["attempt_id"] = json!(format!("source-{host}"));
            body["kv_transfer_params"]["remote_request_id"] = json!(format!("cmpl-source-{host}"));
            body["kv_transfer_params"]["remote_port"] = json!(allowed);
            body["verify"] = json!("full");
            body["source_sidecar"] = json!(format!("http://{host}:{port}"));
        });
        guarded.refused(&forged, 403, "peer_not_allowed");
    }
    let came = forbidden.accept();
    assert!(came.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "{came:?}");

    // Without the list the same request does knock there.
    let open = pod("", "");
    open.wait_until_ready();
    open.refused(&peer("localhost", port), 504, "deadline");
    assert!(forbidden.accept().is_ok(), "the trap works");
}

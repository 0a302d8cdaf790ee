//! No room for what is written down: logs are lost, nothing else.

use std::fs::OpenOptions;

use crate::process::{Running, free_ports, nixl_is_here, wait_for};

/// A process whose every log line fails with "no space left on device".
fn without_a_log(args: &str) -> Running {
    Running::start_with(args, OpenOptions::new().write(true).open("/dev/full").expect("/dev/full"))
}

#[test]
fn a_log_that_cannot_be_written_ends_nobody() {
    let router = without_a_log(
        "router --pd-disaggregation --prefill http://127.0.0.1:1 --decode http://127.0.0.1:1 --host 127.0.0.1 --port 0",
    );
    // Its watchers log that nobody answers, and requests that they are refused.
    assert_eq!(router.request("POST", "/v1/completions", r#"{"model":"m","prompt":"a"}"#).0, 503);
    assert_eq!(router.request("GET", "/readyz", "").0, 503);
    assert_eq!(router.terminate(), 0);
    if !nixl_is_here() {
        return;
    }
    let side_channel = free_ports(1);
    let engine = without_a_log(&format!(
        "sim --listen 127.0.0.1:0 --side-channel 127.0.0.1:{side_channel} --layers 1 --num-blocks 16"
    ));
    let sidecar = without_a_log(&format!(
        "sidecar --role decode --engine http://127.0.0.1:{} --engine-side-channel 127.0.0.1:{side_channel} \
         --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging-bytes 1MiB",
        engine.http
    ));
    wait_for("a ready sidecar", || (sidecar.request("GET", "/readyz", "").0 == 200).then_some(()));
    drop(engine);
    wait_for("a sidecar that is not ready", || (sidecar.request("GET", "/readyz", "").0 == 503).then_some(()));
    assert_eq!(sidecar.request("GET", "/livez", "").0, 200);
    assert_eq!(sidecar.terminate(), 0);
}

//! What a running sidecar logs is changed over HTTP.

use crate::process::{Running, nixl_is_here, wait_for};

#[test]
fn a_running_sidecar_says_more_and_then_less() {
    if !nixl_is_here() {
        return;
    }
    // Port 1 is nobody's: no engine is needed for this.
    let sidecar = Running::start(
        "sidecar --role prefill --engine http://127.0.0.1:1 --engine-side-channel 127.0.0.1:1 --listen 127.0.0.1:0",
    );
    // Every request is logged at debug, with its path.
    let asked =
        |path: &str| sidecar.log().lines().filter(|line| line.contains("answered") && line.contains(path)).count();
    let put = |filter: &str| sidecar.request("PUT", "/v1/log-level", &format!("{{\"filter\":\"{filter}\"}}"));
    assert_eq!(sidecar.request("GET", "/version", "").0, 200);
    assert_eq!(put("info,sidecar=debug").0, 200);
    sidecar.request("GET", "/v1/peers", "");
    wait_for("a debug line", || (asked("/v1/peers") == 1).then_some(()));
    assert_eq!(asked("/version"), 0, "at info nothing is said of a request: {}", sidecar.log());

    assert_eq!(put("info").0, 200);
    let (status, problem) = put("sidecar=shout");
    assert_eq!((status, problem["code"].as_str()), (400, Some("params_invalid")), "{problem:#}");
    assert_eq!(sidecar.request("GET", "/v1/log-level", "").1["filter"], "info");
    sidecar.request("GET", "/v1/handles", "");
    assert_eq!(asked("/v1/handles"), 0, "{}", sidecar.log());
}

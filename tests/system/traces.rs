//! One request through router and sidecars is one trace at the collector.

use std::time::{Duration, Instant};

use crate::deployment::Deployment;
use crate::otlp_receiver::{Collector, Sent};
use crate::process::{PATIENCE, nixl_is_here};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The one span of a service with this name, and of this route if it has one.
fn only<'a>(all: &'a [Sent], service: &str, name: &str, route: &str) -> &'a Sent {
    let fits = |span: &&Sent| {
        span.service == service && span.name == name && (route.is_empty() || span.said("http.route") == route)
    };
    let found: Vec<&Sent> = all.iter().filter(fits).collect();
    let [one] = found.as_slice() else { panic!("{} spans {service} {name} {route} in {all:#?}", found.len()) };
    one
}

#[test]
fn one_request_is_one_trace_over_router_and_sidecars() {
    if !nixl_is_here() {
        return;
    }
    let collector = Collector::start("200 OK");
    let flags = format!("--otlp-endpoint http://{}", collector.address);
    // Every handle is reported, also one that is let go at once.
    let deployment =
        Deployment::start(&format!("{flags} --verify full"), &format!("{flags} --report-handles-after-ms 0"));
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let headers = [("traceparent", parent.as_str()), ("x-request-id", "mine")];
    let body = r#"{"model":"m","prompt":"no span may tell this","max_tokens":4}"#;
    assert_eq!(deployment.post("/v1/completions", &headers, body).0, 200);
    // P's sidecar is told last: its handle is let go when D's sidecar has read it and D has collected.
    let all = gathered(&collector, |all| {
        let has = |service: &str, name: &str| all.iter().any(|span| span.service == service && span.name == name);
        let digests = all.iter().any(|span| span.said("http.route") == "/v1/digests");
        let reported = all.iter().any(|span| span.said("http.route") == "/v1/handles");
        digests
            && reported
            && has("kvgate-router", "request")
            && has("kvgate-sidecar", "transfer")
            && has("kvgate-sidecar", "peer")
    });
    let request = only(&all, "kvgate-router", "request", "");
    assert_eq!(hex(&request.parent), "00f067aa0ba902b7");
    for (name, value) in [("request_id", "mine"), ("outcome", "ok"), ("path", "pd"), ("model", "m")] {
        assert_eq!(request.said(name), value);
    }
    for leg in ["prefill", "transfer", "decode", "stream"] {
        assert_eq!(only(&all, "kvgate-router", leg, "").parent, request.id, "{leg}");
    }
    let leg = only(&all, "kvgate-router", "transfer", "");
    let served = only(&all, "kvgate-sidecar", "http", "/v1/transfers");
    assert_eq!(served.parent, leg.id, "the sidecar goes on from the router's leg");
    let transfer = only(&all, "kvgate-sidecar", "transfer", "");
    assert_eq!(transfer.parent, served.id);
    for (name, value) in
        [("transfer_id", leg.said("transfer_id")), ("dp_rank", "0"), ("outcome", "landed"), ("state", "done")]
    {
        assert_eq!(transfer.said(name), value);
    }
    for stage in ["queued", "peer", "post", "wire", "verify", "landed_idle", "collect"] {
        let span = only(&all, "kvgate-sidecar", stage, "");
        assert_eq!(span.parent, transfer.id, "{stage}");
        assert!(transfer.start <= span.start && span.end <= transfer.end + 1_000_000, "{stage}");
    }
    let digests = only(&all, "kvgate-sidecar", "http", "/v1/digests");
    assert_eq!(digests.parent, transfer.id, "P's sidecar is asked for the transfer's sake");
    let reported = only(&all, "kvgate-sidecar", "http", "/v1/handles");
    assert_eq!(
        reported.parent,
        only(&all, "kvgate-router", "prefill", "").id,
        "P's sidecar is asked for the prefill's sake"
    );
    assert!(all.iter().all(|span| !span.failed), "{all:#?}");
    assert!(!format!("{all:?}").contains("no span may tell this"));

    // What has not been sent yet is sent before the process ends.
    let body = body.replace("no span", "nor this: no span");
    assert_eq!(deployment.post("/v1/completions", &[("x-request-id", "last")], &body).0, 200);
    assert_eq!(deployment.router.terminate(), 0);
    let of_last = |span: &Sent| span.name == "request" && span.said("request_id") == "last";
    let rest = std::iter::from_fn(|| collector.next(Duration::from_secs(10)));
    assert!(rest.flatten().any(|span| of_last(&span) && span.parent.is_empty()));
}

/// All spans of the request's trace, as soon as there are enough.
fn gathered(collector: &Collector, enough: impl Fn(&[Sent]) -> bool) -> Vec<Sent> {
    let mut all: Vec<Sent> = Vec::new();
    #[expect(clippy::disallowed_methods, reason = "the deadline of a test's wait")]
    let until = Instant::now() + PATIENCE;
    loop {
        if enough(&all) {
            return all;
        }
        #[expect(clippy::disallowed_methods, reason = "the deadline of a test's wait")]
        let now = Instant::now();
        assert!(now < until, "not enough spans came: {all:#?}");
        let next = collector.next(Duration::from_secs(1)).unwrap_or_default();
        all.extend(next.into_iter().filter(|span| hex(&span.trace) == TRACE));
    }
}

//! SIGTERM: what is under way ends well, nothing new is taken, everything is given back. A second one ends at once.

use serde_json::{Value, json};

use crate::deployed::{Deployment, Ended, Plan, Pod, Stream, page, prefilled, prompt, transfer};
use crate::process::{nixl_is_here, wait_for};

const STREAMS: usize = 64;
const TOKENS: u64 = 40;

/// 64 prompts and the streams through the router, none of which is at its end for a while.
fn streams(deployment: &Deployment) -> Vec<(String, Stream)> {
    let asks = (0..STREAMS).map(|number| prompt(number, 20 + 3 * number));
    let known: Vec<_> = asks.map(|prompt| (deployment.expected(&prompt, TOKENS), prompt)).collect();
    known.into_iter().map(|(expected, prompt)| (expected, deployment.stream(&prompt, TOKENS))).collect()
}

fn all_are_right(streams: Vec<(String, Stream)>) {
    for (text, stream) in streams {
        assert_eq!(stream.end(), Ended { text, whole: true, error: None });
    }
}

#[test]
fn a_router_that_is_told_to_end_cuts_none_of_64_streams_and_takes_no_more() {
    if !nixl_is_here() {
        return;
    }
    let deployment = Deployment::start(&Plan { tpot_ms: 60, ..Plan::default() });
    let streams = streams(&deployment);
    wait_for("all streams to begin", || streams.iter().all(|(_, stream)| stream.has_begun()).then_some(()));
    deployment.router.signal_to_end();
    wait_for("a router that is not ready", || (deployment.router.request("GET", "/readyz", "").0 == 503).then_some(()));
    let (status, refused) = deployment.ask("one more", 1);
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("shutting_down")), "{refused}");
    assert!(streams.iter().any(|(_, stream)| !stream.has_ended()), "the streams were still under way");
    all_are_right(streams);
    deployment.wait_until_nothing_is_held();
    let Deployment { router, .. } = deployment;
    assert_eq!(router.wait_for_end(), Some(0));
}

#[test]
fn a_decode_sidecar_that_is_told_to_end_cuts_none_of_64_streams_beside_another() {
    if !nixl_is_here() {
        return;
    }
    let mut deployment = Deployment::start(&Plan { decode: 2, tpot_ms: 20, ..Plan::default() });
    let streams = streams(&deployment);
    // Some have landed and are collected, some are on their way, some have not been prefilled.
    wait_for("a stream to begin", || streams.iter().any(|(_, stream)| stream.has_begun()).then_some(()));
    let going = deployment.decode.remove(0);
    going.sidecar.signal_to_end();
    all_are_right(streams);
    assert_eq!(going.sidecar.wait_for_end(), Some(0));
    deployment.wait_until_nothing_is_held();
}

#[test]
fn a_sidecar_that_is_told_to_end_keeps_what_has_landed_for_its_decode_and_takes_nothing_new() {
    if !nixl_is_here() {
        return;
    }
    let deployment = Deployment::start(&Plan::default());
    let (prefill, decode) = (&deployment.prefill, &deployment.decode[0]);
    let params = prefilled(&prefill.engine, &prompt(1, 200));
    let (status, landed) = decode.sidecar.request("POST", "/v1/transfers", &transfer("a-1", &params));
    assert_eq!(status, 200, "{landed}");
    wait_for("P to be told", || (prefill.pinned() == 0).then_some(()));
    decode.sidecar.signal_to_end();
    wait_for("a sidecar that is not ready", || (decode.sidecar.request("GET", "/readyz", "").0 == 503).then_some(()));
    let second = prefilled(&prefill.engine, &prompt(2, 200));
    let (status, refused) = decode.sidecar.request("POST", "/v1/transfers", &transfer("a-2", &second));
    assert_eq!((status, &refused["code"]), (503, &json!("shutting_down")));
    let expected = deployment.expected(&prompt(1, 200), 8);
    let ask = json!({ "model": "sim", "prompt": prompt(1, 200), "max_tokens": 8,
                      "kv_transfer_params": landed["kv_transfer_params"] });
    let (status, decoded) = decode.engine.request("POST", "/v1/completions", &ask.to_string());
    assert_eq!((status, decoded["choices"][0]["text"].as_str()), (200, Some(expected.as_str())), "{decoded}");
    let Deployment { decode, .. } = deployment;
    for pod in decode {
        assert_eq!(pod.sidecar.wait_for_end(), Some(0));
    }
}

#[test]
fn a_second_signal_ends_a_router_and_a_sidecar_at_once() {
    if !nixl_is_here() {
        return;
    }
    // Nothing of this ends by itself.
    let deployment = Deployment::start(&Plan { tpot_ms: 60_000, router: "--drain-timeout 3600s", ..Plan::default() });
    let stream = deployment.stream("never", 3);
    wait_for("the stream to begin", || stream.has_begun().then_some(()));
    let params = prefilled(&deployment.prefill.engine, &prompt(1, 200));
    let Deployment { router, mut decode, .. } = deployment;
    let Pod { sidecar, engine: _engine, .. } = decode.remove(0);
    let (status, landed) = sidecar.request("POST", "/v1/transfers", &transfer("a-1", &params));
    assert_eq!(status, 200, "{landed}");
    for process in [router, sidecar] {
        process.signal_to_end();
        wait_for("the drain", || (process.request("GET", "/readyz", "").0 == 503).then_some(()));
        process.signal_to_end();
        // An orderly end would have the code 0.
        assert_eq!(process.wait_for_end(), None, "it is ended by a signal");
    }
    assert!(!stream.end().whole);
}

/// A deployment whose 64 streams are all prefilled while P keeps blocks of some, because D's pulls wait; the streams.
fn prefilled_and_not_read() -> (Deployment, Vec<(String, Stream)>) {
    let deployment = Deployment::start(&Plan { sidecar: "--fault hold-pull=3000", tpot_ms: 150, ..Plan::default() });
    let streams = streams(&deployment);
    // The 64 of before were for the texts that are expected.
    let all = 2 * u64::try_from(STREAMS).expect("a count");
    let engine = &deployment.prefill;
    wait_for("all prefills", || (engine.gauge("vllm:request_success_total") == all).then_some(()));
    assert!(engine.pinned() > 0, "D has not read everything yet");
    (deployment, streams)
}

/// Nothing that P kept for D ran out of its lease.
fn everything_was_read(deployment: &Deployment) {
    deployment.wait_until_nothing_is_held();
    assert_eq!(deployment.prefill.gauge("vllm:nixl_num_kv_expired_reqs_total"), 0);
}

#[test]
fn a_prefill_sidecar_that_is_told_to_end_cuts_no_stream_and_what_p_keeps_is_read() {
    if !nixl_is_here() {
        return;
    }
    let (deployment, streams) = prefilled_and_not_read();
    deployment.prefill.sidecar.signal_to_end();
    wait_for("a router that knows", || (deployment.router.request("GET", "/readyz", "").0 == 503).then_some(()));
    // It is there as long as there is something to be told of, also to a hook that comes late.
    assert!(deployment.prefill.pinned() > 0, "D has not read everything yet");
    let (status, answer) = quiet(&deployment, "for=0s&wait=50s");
    assert_eq!((status, deployment.prefill.pinned()), (200, 0), "{answer}");
    all_are_right(streams);
    everything_was_read(&deployment);
    let Deployment { prefill, .. } = deployment;
    assert_eq!(prefill.sidecar.wait_for_end(), Some(0));
}

#[test]
fn a_prefill_pod_whose_hook_has_answered_ends_under_64_streams_without_cutting_one() {
    if !nixl_is_here() {
        return;
    }
    let (deployment, streams) = prefilled_and_not_read();
    // As Kubernetes does it: the hook, then the engine, then the sidecar, which outlives it.
    let (status, answer) = quiet(&deployment, "for=0s&wait=50s");
    assert_eq!(status, 200, "{answer}");
    everything_was_read(&deployment);
    assert!(streams.iter().any(|(_, stream)| !stream.has_ended()), "the streams were still under way");
    let Deployment { router: _router, prefill, decode: _decode } = deployment;
    for process in [prefill.engine, prefill.sidecar] {
        process.signal_to_end();
        assert_eq!(process.wait_for_end(), Some(0));
    }
    all_are_right(streams);
}

/// `GET /quietz`: the status and the body.
fn quiet(deployment: &Deployment, query: &str) -> (u16, Value) {
    deployment.prefill.sidecar.request("GET", &format!("/quietz?{query}"), "")
}

#[test]
fn the_hook_before_a_prefill_engine_s_end_waits_until_nobody_needs_its_blocks() {
    if !nixl_is_here() {
        return;
    }
    let deployment = Deployment::start(&Plan { lease_ms: 60_000, ..Plan::default() });
    assert_eq!(quiet(&deployment, "for=0s&wait=30s").0, 200);
    // Nobody has told the sidecar of this one: the engine's own figures show it.
    let params = prefilled(&deployment.prefill.engine, &prompt(1, 200));
    let (status, answer) = quiet(&deployment, "for=0s&wait=3s");
    assert_eq!((status, &answer["code"]), (503, &json!("engine_in_use")), "{answer}");
    assert!(answer["ranks"][0]["reasons"][0].as_str().is_some_and(|why| why.contains("KV cache")), "{answer}");
    // Both wait at the same time: the answer comes because D has read the blocks.
    let port = deployment.prefill.sidecar.http;
    let waiting = std::thread::spawn(move || page(port, "/quietz?for=1s&wait=50s"));
    let (status, landed) = deployment.decode[0].sidecar.request("POST", "/v1/transfers", &transfer("a-1", &params));
    assert_eq!(status, 200, "{landed}");
    let answered = waiting.join().expect("an answer");
    assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
    assert_eq!(deployment.prefill.pinned(), 0);
}

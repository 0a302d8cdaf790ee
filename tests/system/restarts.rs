//! Real processes that stop, die and come back, seen by clients and by the data plane.

use std::thread::spawn;

use serde_json::{Value, json};

use crate::deployed::{Deployment, Ended, Plan, Pod, Stream, prefilled, prompt, transfer};
use crate::process::{Running, kvgate, nixl_is_here, request, wait_for};

const TOKENS: u64 = 12;

/// A request has its right text.
#[track_caller]
fn serves(deployment: &Deployment, number: usize) {
    let prompt = prompt(number, 150);
    let expected = deployment.expected(&prompt, TOKENS);
    let (status, answer) = deployment.ask(&prompt, TOKENS);
    assert_eq!((status, answer["choices"][0]["text"].as_str()), (200, Some(expected.as_str())), "{answer}");
}

#[test]
fn a_decode_pod_that_restarts_five_times_is_ready_only_when_the_next_request_is_served() {
    if !nixl_is_here() {
        return;
    }
    let mut deployment = Deployment::start(&Plan::default());
    serves(&deployment, 0);
    for round in 1..=5 {
        let pod = &mut deployment.decode[0];
        // All of it, the engine alone, the sidecar alone, and again.
        if round % 3 != 0 {
            pod.engine.kill();
        }
        if round % 3 != 2 {
            pod.sidecar.kill();
        }
        wait_for("a router that knows", || (deployment.router.request("GET", "/readyz", "").0 == 503).then_some(()));
        let (status, refused) = deployment.ask(&prompt(round, 50), 1);
        assert!(status == 503 || status == 502, "{refused}");
        assert!(refused["error"]["code"].is_string(), "{refused}");
        let pod = &mut deployment.decode[0];
        if round % 3 != 0 {
            pod.engine = Running::start(&pod.engine_line);
        }
        if round % 3 != 2 {
            pod.sidecar = Running::start(&pod.sidecar_line);
        }
        deployment.wait_until_ready();
        serves(&deployment, 100 + round);
    }
    deployment.wait_until_nothing_is_held();
}

#[test]
fn a_prefill_engine_that_comes_back_at_its_address_is_read_from_by_the_next_request() {
    if !nixl_is_here() {
        return;
    }
    let mut deployment = Deployment::start(&Plan::default());
    for round in 0..3 {
        serves(&deployment, round);
        deployment.prefill.restart_engine();
        deployment.wait_until_ready();
    }
    serves(&deployment, 9);
    deployment.wait_until_nothing_is_held();
}

/// A deployment whose pulls go over TCP, which needs P's process, and begin when P is in the state that a test has put it in.
fn slow_pulls() -> Deployment {
    let plan = Plan { sidecar: "--fault hold-pull=1500", lease_ms: 20_000, ..Plan::default() };
    let mut deployment = Deployment::start(&plan);
    let pod = &mut deployment.decode[0];
    pod.sidecar.kill();
    let mut over_tcp = kvgate("");
    over_tcp.env("UCX_TLS", "tcp");
    pod.sidecar = Running::start_as(over_tcp, &pod.sidecar_line);
    deployment.wait_until_ready();
    serves(&deployment, 0);
    deployment
}

/// Asks D's sidecar for a pull that may take 5 s, and waits until it is on its way.
fn pulled(pod: &Pod, params: &Value) -> impl FnOnce() -> (u16, Value) + use<> {
    let mut body: Value = serde_json::from_str(&transfer("a-1", params)).expect("JSON");
    body["deadline_ms"] = json!(5_000);
    let port = pod.sidecar.http;
    let asked = spawn(move || request(port, "POST", "/v1/transfers", &body.to_string()));
    wait_for("the pull", || (pod.rank()["in_flight"] == 1).then_some(()));
    || asked.join().expect("an answer")
}

#[test]
fn a_prefill_engine_that_stands_still_in_the_middle_of_a_pull_gives_no_receipt_and_is_read_from_when_it_goes_on() {
    if !nixl_is_here() {
        return;
    }
    let deployment = slow_pulls();
    let params = prefilled(&deployment.prefill.engine, &prompt(1, 400));
    let answer = pulled(&deployment.decode[0], &params);
    deployment.prefill.engine.freeze();
    let (status, refused) = answer();
    assert!(status >= 400 && refused["code"].is_string(), "{refused}");
    assert_eq!(deployment.decode[0].sidecar.request("GET", "/livez", "").0, 200);
    deployment.prefill.engine.thaw();
    deployment.wait_until_ready();
    serves(&deployment, 2);
    wait_for("the slots to be given back", || (deployment.decode[0].held() == 0).then_some(()));
}

#[test]
fn a_prefill_engine_that_dies_in_the_middle_of_a_pull_fails_it_in_time_and_its_successor_is_read_from() {
    if !nixl_is_here() {
        return;
    }
    let mut deployment = slow_pulls();
    let params = prefilled(&deployment.prefill.engine, &prompt(1, 400));
    let answer = pulled(&deployment.decode[0], &params);
    deployment.prefill.engine.kill();
    let (status, refused) = answer();
    assert!(status >= 500 && refused["code"].is_string(), "{refused}");
    deployment.prefill.restart_engine();
    deployment.wait_until_ready();
    serves(&deployment, 2);
    wait_for("the slots to be given back", || (deployment.decode[0].held() == 0).then_some(()));
}

#[test]
fn two_clients_with_the_same_request_id_have_each_their_own_text() {
    if !nixl_is_here() {
        return;
    }
    let deployment = Deployment::start(&Plan { decode: 2, tpot_ms: 10, ..Plan::default() });
    let asks: Vec<_> = (0..16).map(|number| prompt(number, 100)).collect();
    let known: Vec<_> = asks.iter().map(|prompt| deployment.expected(prompt, TOKENS)).collect();
    let port = deployment.router.http;
    let streams: Vec<_> = asks.iter().map(|prompt| Stream::named(port, prompt, TOKENS, "the-same")).collect();
    for (text, stream) in known.into_iter().zip(streams) {
        assert_eq!(stream.end(), Ended { text, whole: true, error: None });
    }
    deployment.wait_until_nothing_is_held();
}

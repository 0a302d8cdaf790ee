//! P's blocks of requests that come to nothing, or that D has no need of, are given back at once, not when their lease ends.

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "real time is measured and told")]

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::deployed::{Deployment, Plan, prompt};
use crate::process::{Running, nixl_is_here, wait_for};

const WITHIN: Duration = Duration::from_secs(1);

/// From now on P keeps nothing, soon; it was told so by its own names, and no lease had to end.
#[track_caller]
fn is_released(deployment: &Deployment) {
    let (since, engine) = (Instant::now(), &deployment.prefill);
    wait_for("P's blocks to be released", || (engine.pinned() == 0).then_some(()));
    let took = since.elapsed();
    println!("released after {took:?}");
    assert!(took < WITHIN, "{took:?}");
    assert_eq!(engine.gauge("vllm:nixl_num_kv_expired_reqs_total"), 0);
    assert_eq!(engine.gauge("sim:unknown_notifications_total"), 0);
    deployment.wait_until_nothing_is_held();
}

#[test]
fn what_d_refuses_is_released_within_a_second() {
    if !nixl_is_here() {
        return;
    }
    let mut deployment = Deployment::start(&Plan::default());
    let pod = &mut deployment.decode[0];
    let before = pod.rank()["engine_id"].clone();
    pod.engine.kill();
    pod.engine = Running::start(&format!("{} --max-model-len 100", pod.engine_line));
    wait_for("the new engine", || {
        let rank = pod.rank();
        (rank["state"] == "ready" && rank["engine_id"] != before).then_some(())
    });
    deployment.wait_until_ready();
    let (status, refused) = deployment.ask(&prompt(1, 300), 4);
    assert_eq!(status, 400, "{refused}");
    assert!(
        refused["error"]["message"].as_str().is_some_and(|why| why.contains("100 tokens")),
        "D's own words: {refused}"
    );
    assert!(deployment.prefill.gauge("vllm:request_success_total") > 0, "P had prefilled it");
    is_released(&deployment);
}

#[test]
fn what_a_client_left_between_prefill_and_decode_is_released_within_a_second() {
    if !nixl_is_here() {
        return;
    }
    // Longer than anybody waits here: D's pull does not begin.
    let deployment = Deployment::start(&Plan { sidecar: "--fault hold-pull=20000", ..Plan::default() });
    let mut client = TcpStream::connect(("127.0.0.1", deployment.router.http)).expect("the router listens");
    let body = format!(r#"{{"model":"sim","prompt":"{}","max_tokens":4,"stream":true}}"#, prompt(1, 300));
    let head = "POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n";
    write!(client, "{head}content-length: {}\r\n\r\n{body}", body.len()).expect("it is sent");
    wait_for("the pull", || (deployment.decode[0].rank()["in_flight"] == 1).then_some(()));
    assert_eq!(deployment.prefill.pinned(), 1);
    client.shutdown(Shutdown::Both).expect("it leaves");
    is_released(&deployment);
}

#[test]
fn what_d_has_already_is_released_within_a_second() {
    if !nixl_is_here() {
        return;
    }
    let deployment = Deployment::start(&Plan::default());
    let prompt = prompt(1, 300);
    let expected = deployment.expected(&prompt, 4);
    for round in 1..=3 {
        let (status, answer) = deployment.ask(&prompt, 4);
        assert_eq!((status, answer["choices"][0]["text"].as_str()), (200, Some(expected.as_str())), "{answer}");
        is_released(&deployment);
        let hits = deployment.decode[0].gauge("vllm:prefix_cache_hits_total");
        assert_eq!(hits > 0, round > 1, "round {round}: D has the prefix from then on");
    }
}

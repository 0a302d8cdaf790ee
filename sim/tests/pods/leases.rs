//! Pins, leases, heartbeats, notifications, aborts; on a paused clock.

use std::time::Duration;

use serde_json::json;

use crate::rig::{TestPod, loopback, pod, prompt, wait_for};

/// Computes other prompts until every block has been used again.
async fn reuse_every_block(p: &TestPod) {
    for first in 0..40 {
        p.plain(&prompt(1000 + first, 16)).await;
    }
}

const FEW_BLOCKS: &str = "--num-blocks 17";

#[tokio::test(start_paused = true)]
async fn a_reader_that_comes_after_the_lease_reads_reused_bytes_and_nobody_says_so() {
    let seams = loopback();
    let (p, d) = (pod(&seams, FEW_BLOCKS).await, pod(&seams, FEW_BLOCKS).await);
    let prompt = prompt(1, 16);
    let good = d.plain(&prompt).await;
    let d = pod(&seams, FEW_BLOCKS).await;
    let params = p.prefill(&prompt).await;
    assert_eq!(p.stats().pinned.get(), 1);
    reuse_every_block(&p).await;
    assert_eq!(d.decode(&prompt, &params).await, good, "pinned blocks are not reused");

    let d = pod(&seams, FEW_BLOCKS).await;
    let params = p.prefill(&prompt).await;
    tokio::time::advance(Duration::from_secs(31)).await;
    wait_for("the lease is over", || p.stats().expired.get() == 1).await;
    reuse_every_block(&p).await;
    assert_ne!(d.decode(&prompt, &params).await, good, "HTTP 200 and a wrong text");
    wait_for("P hears of it too late", || p.stats().late_notifications.get() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_the_blocks_while_a_request_waits_for_longer_than_the_lease() {
    let seams = loopback();
    let p = pod(&seams, FEW_BLOCKS).await;
    let d = pod(&seams, "--num-blocks 65 --max-num-seqs 1 --tpot-ms 1000").await;
    let prompt = prompt(1, 16);
    let good = pod(&seams, "").await.plain(&prompt).await;
    let params = p.prefill(&prompt).await;
    let busy = json!({"prompt": "busy", "max_tokens": 121});
    let body = json!({"prompt": prompt, "kv_transfer_params": params});
    let started = tokio::time::Instant::now();
    let long = d.post("/v1/completions", &[], &busy);
    let waiting = async {
        wait_for("the other one runs", || d.stats().running.get() == 1).await;
        d.post("/v1/completions", &[], &body).await
    };
    let others = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        reuse_every_block(&p).await;
    };
    let ((_, _), (status, answer), ()) = tokio::join!(long, waiting, others);
    assert!(started.elapsed() > Duration::from_secs(120));
    assert_eq!(status, 200);
    assert_eq!(crate::rig::text(&answer), good);
    assert_eq!(p.stats().expired.get(), 0);
    wait_for("P's blocks are free", || p.stats().used_blocks.get() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn without_heartbeats_the_same_wait_ends_the_lease() {
    let seams = loopback();
    let p = pod(&seams, FEW_BLOCKS).await;
    let params = p.prefill(&prompt(1, 16)).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!((p.stats().expired.get(), p.stats().pinned.get()), (0, 1));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((p.stats().expired.get(), p.stats().pinned.get()), (1, 0));
    assert!(params["remote_request_id"].as_str().unwrap().starts_with("cmpl-"));
}

#[tokio::test(start_paused = true)]
async fn a_decode_that_is_aborted_in_the_queue_tells_p_that_nobody_will_read() {
    let seams = loopback();
    let p = pod(&seams, "").await;
    let d = pod(&seams, "--max-num-seqs 1 --tpot-ms 1000").await;
    let params = p.prefill(&prompt(1, 16)).await;
    let busy = json!({"prompt": "busy", "max_tokens": 100});
    let body = json!({"prompt": prompt(1, 16), "kv_transfer_params": params});
    let aborted = async {
        wait_for("the other one runs", || d.stats().running.get() == 1).await;
        let request = d.post("/v1/completions", &[], &body);
        assert!(tokio::time::timeout(Duration::from_secs(10), request).await.is_err());
        wait_for("P's blocks are free", || p.stats().pinned.get() == 0).await;
        assert_eq!(p.stats().expired.get(), 0);
        assert_eq!(d.stats().waiting.get(), 0);
    };
    let long = d.post("/v1/completions", &[], &busy);
    tokio::join!(async { assert_eq!(long.await.0, 200) }, aborted);
    assert_eq!(d.stats().transfers.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_frees_its_blocks() {
    let pod = pod(&loopback(), "--tpot-ms 1000").await;
    let body = json!({"prompt": "hello", "max_tokens": 100, "stream": true});
    let answer = pod.send("/v1/completions", &[], &body).await;
    wait_for("it runs", || pod.stats().running.get() == 1 && pod.stats().used_blocks.get() > 0).await;
    drop(answer);
    wait_for("it is gone", || pod.stats().running.get() == 0 && pod.stats().used_blocks.get() == 0).await;
    assert!(pod.stats().generation_tokens.get() < 10);
}

#[tokio::test(start_paused = true)]
async fn a_prefill_whose_client_left_after_the_answer_stays_pinned_one_that_left_before_does_not() {
    let seams = loopback();
    let pod = pod(&seams, "--prefill-tokens-per-s 10").await;
    let body = json!({"prompt": prompt(1, 100), "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": true}});
    let request = pod.post("/v1/completions", &[], &body);
    assert!(tokio::time::timeout(Duration::from_secs(5), request).await.is_err(), "100 tokens take 10 s");
    wait_for("it is aborted", || pod.stats().used_blocks.get() == 0).await;
    let started = tokio::time::Instant::now();
    let (status, _) = pod.post("/v1/completions", &[], &body).await;
    assert_eq!(status, 200);
    assert!(started.elapsed() >= Duration::from_secs(10), "paced: {:?}", started.elapsed());
    assert_eq!(pod.stats().pinned.get(), 1);
}

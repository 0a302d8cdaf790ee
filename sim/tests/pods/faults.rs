//! A fabric that goes wrong, engines that die, and many requests at once.

use std::sync::Arc;
use std::time::Duration;

use nixl::faulty::{FaultPlan, Faulty, ReadFault};
use nixl::loopback::LoopbackNet;
use nixl::{AgentName, Fabric};
use serde_json::{Value, json};
use side_channel::InProcess;
use sim::seams::{Agents, LoopbackAgents, MadeAgent, Seams};

use crate::rig::{loopback, pod, prompt, text, wait_for};

#[derive(Debug)]
struct FaultyAgents {
    net: LoopbackNet,
    plan: FaultPlan,
}

impl Agents for FaultyAgents {
    fn agent(&self, name: AgentName, _: Option<cuda::Gpu>) -> MadeAgent {
        let agent: Arc<dyn Fabric> = Faulty::wrap(self.net.agent(name), self.plan.clone());
        Box::pin(async { Ok(agent) })
    }
}

/// Ways out for a sound prefill pod, and for a decode pod whose fabric follows a plan.
fn unequal() -> (Seams, Seams, FaultPlan) {
    let (net, side_channel, plan) = (LoopbackNet::new(), Arc::new(InProcess::new()), FaultPlan::new());
    let faulty = FaultyAgents { net: net.clone(), plan: plan.clone() };
    let sound = Seams { agents: Arc::new(LoopbackAgents::new(net)), side_channel: side_channel.clone() };
    (sound, Seams { agents: Arc::new(faulty), side_channel }, plan)
}

#[tokio::test(start_paused = true)]
async fn blocks_of_a_read_that_fails_and_lands_late_are_never_used_again() {
    let (sound, faulty, plan) = unequal();
    let (p, d) = (pod(&sound, "").await, pod(&faulty, "--num-blocks 13").await);
    let first = prompt(1, 16);
    let params = p.prefill(&first).await;
    plan.next_read(Some(ReadFault::FailThenLand(Duration::from_secs(5))));
    let body = json!({"prompt": first, "kv_transfer_params": params});
    assert_eq!(d.post("/v1/completions", &[], &body).await.0, 500);
    wait_for("they are in quarantine", || d.stats().quarantined_blocks.get() == 8).await;
    let long = json!({"prompt": prompt(500, 12), "max_tokens": 4});
    let (_, before) = d.post("/v1/completions", &[], &long).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (_, after) = d.post("/v1/completions", &[], &long).await;
    assert_eq!(text(&after), text(&before), "late bytes hit nobody");
    assert_eq!(d.stats().used_blocks.get(), 8);
    let (_, again) = p.post("/v1/completions", &[], &long).await;
    assert_eq!(text(&again), text(&after));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_during_the_read_frees_the_blocks_only_when_the_read_has_ended() {
    let (sound, faulty, plan) = unequal();
    let (p, d) = (pod(&sound, "").await, pod(&faulty, "").await);
    let prompt = prompt(1, 16);
    let params = p.prefill(&prompt).await;
    plan.next_read(Some(ReadFault::Delay(Duration::from_secs(5))));
    let body = json!({"prompt": prompt, "kv_transfer_params": params});
    let request = d.post("/v1/completions", &[], &body);
    assert!(tokio::time::timeout(Duration::from_secs(1), request).await.is_err());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(d.stats().used_blocks.get() > 0, "the hardware may still write");
    assert_eq!(d.stats().waiting.get(), 0, "the request itself is gone");
    wait_for("the read is over", || d.stats().used_blocks.get() == 0).await;
    wait_for("P was told by the read", || p.stats().pinned.get() == 0).await;
    assert_eq!(p.stats().expired.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_overwrites_what_it_has_pinned_gives_another_text_to_who_reads_late() {
    let (sound, _, _) = unequal();
    let p = pod(&sound, "--fault overwrite-pinned=1000 --prefix-caching off").await;
    let d = pod(&sound, "--prefix-caching off").await;
    let prompt = prompt(1, 16);
    let (early, late) = (p.prefill(&prompt).await, p.prefill(&prompt).await);
    let right = d.plain(&prompt).await;
    assert_eq!(d.decode(&prompt, &early).await, right);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_ne!(d.decode(&prompt, &late).await, right);
}

#[tokio::test(start_paused = true)]
async fn corrupted_bytes_give_another_text() {
    let (sound, faulty, plan) = unequal();
    let (p, d) = (pod(&sound, "").await, pod(&faulty, "").await);
    let prompt = prompt(1, 16);
    let params = p.prefill(&prompt).await;
    plan.next_read(Some(ReadFault::Corrupt));
    assert_ne!(d.decode(&prompt, &params).await, p.plain(&prompt).await);
}

#[tokio::test(start_paused = true)]
async fn a_prefill_engine_that_comes_back_is_another_engine() {
    let seams = loopback();
    let d = pod(&seams, "").await;
    let prompt = prompt(1, 16);
    let p = pod(&seams, "").await;
    let params = p.prefill(&prompt).await;
    let good = d.decode(&prompt, &params).await;
    let port = p.pod.side_channel_ports()[0];
    let lost = p.prefill(&prompt).await;
    assert!(p.pod.stop(Duration::from_secs(1)).await);

    let p = pod(&seams, &format!("--side-channel 127.0.0.1:{port}")).await;
    let d = pod(&seams, "").await;
    let body = json!({"prompt": prompt, "kv_transfer_params": lost});
    assert_eq!(d.post("/v1/completions", &[], &body).await.0, 500, "its blocks died with it");
    let params = p.prefill(&prompt).await;
    assert_eq!(params["remote_port"], port);
    assert_eq!(d.decode(&prompt, &params).await, good);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_requests_over_several_ranks_and_few_blocks_all_get_their_own_text() {
    let seams = loopback();
    let flags = "--data-parallel-size 4 --num-blocks 33 --max-num-seqs 5 --tensor-parallel-size 2";
    let (p, d) = (pod(&seams, flags).await, pod(&seams, flags).await);
    let reference = pod(&loopback(), "--prefix-caching off --tensor-parallel-size 2").await;
    let one = async |number: u32| {
        // Every third prompt shares a beginning with others.
        let mut tokens: Vec<u32> =
            (0..8 + number % 23).map(|token| token + if number.is_multiple_of(3) { 0 } else { number }).collect();
        tokens.push(number);
        let prompt = json!(tokens);
        let rank = |rank: u32| (rank % 4).to_string();
        let body = json!({"prompt": prompt, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": true}});
        let (_, prefill) = p.post("/v1/completions", &[("x-data-parallel-rank", &rank(number))], &body).await;
        let body = json!({"prompt": prompt, "max_tokens": 8, "kv_transfer_params": prefill["kv_transfer_params"]});
        let (status, answer) = d.post("/v1/completions", &[("x-data-parallel-rank", &rank(number / 4))], &body).await;
        assert_eq!(status, 200, "{answer}");
        let (_, expected): (_, Value) =
            reference.post("/v1/completions", &[], &json!({"prompt": prompt, "max_tokens": 8})).await;
        assert_eq!(text(&answer), text(&expected), "request {number}");
    };
    futures_util::future::join_all((0..200).map(one)).await;
    let idle = |pod: &crate::rig::TestPod| pod.pod.engines().iter().all(|engine| engine.stats.used_blocks.get() == 0);
    wait_for("every block is free", || idle(&p) && idle(&d)).await;
    assert!(p.pod.engines().iter().all(|engine| engine.stats.expired.get() == 0));
}

//! vLLM's HTTP surface: ranks, errors, bad input, the side channel.

use std::time::Duration;

use kv::ids::TpRank;
use serde_json::{Value, json};
use side_channel::Endpoint;
use vllm_wire::handshake;
use vllm_wire::versions::{SUPPORTED, V0_32_0};

use crate::rig::{events, loopback, pod, prompt, wait_for};

#[tokio::test(start_paused = true)]
async fn the_rank_header_is_vllms() {
    let pod = pod(&loopback(), "--data-parallel-size 2 --data-parallel-start-rank 8").await;
    let body = json!({"prompt": "x", "kv_transfer_params": {"do_remote_decode": true}});
    for (header, suffix) in [("0", "_dp8"), ("1", "_dp9"), (" 1 ", "_dp9")] {
        let (status, answer) = pod.post("/v1/completions", &[("x-data-parallel-rank", header)], &body).await;
        assert_eq!(status, 200);
        assert!(answer["kv_transfer_params"]["remote_engine_id"].as_str().unwrap().ends_with(suffix), "{answer}");
    }
    for ignored in ["one", "1.0", ""] {
        let (status, _) = pod.post("/v1/completions", &[("x-data-parallel-rank", ignored)], &body).await;
        assert_eq!(status, 200, "{ignored:?}");
    }
    for wrong in ["2", "-1", "99999999999999999999999999999999999999999999"] {
        let (status, answer) = pod.post("/v1/completions", &[("x-data-parallel-rank", wrong)], &body).await;
        assert_eq!(status, 400, "{wrong}");
        assert!(answer["error"]["message"].as_str().unwrap().ends_with("is out of range [0, 2)."), "{answer}");
    }
    let streaming = json!({"prompt": "x", "stream": true});
    let events = events(pod.send("/v1/completions", &[("x-data-parallel-rank", "7")], &streaming).await).await;
    assert!(events[0].contains("data_parallel_rank 7 is out of range"), "{events:?}");
    assert_eq!(events[1], "[DONE]");
}

#[tokio::test(start_paused = true)]
async fn without_the_header_ranks_share_the_work() {
    let pod = pod(&loopback(), "--data-parallel-size 3 --tpot-ms 1000").await;
    let body = json!({"prompt": "x", "max_tokens": 20, "stream": true});
    let open = futures_util::future::join_all((0..30).map(|_| pod.send("/v1/completions", &[], &body))).await;
    let busy = || pod.pod.engines().iter().map(|engine| engine.stats.running.get()).collect::<Vec<_>>();
    wait_for("all of them run", || busy().iter().sum::<u64>() == 30).await;
    assert_eq!(busy(), [10, 10, 10]);
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn request_ids_are_the_clients_with_vllms_prefix_and_suffix() {
    let pod = pod(&loopback(), "").await;
    let body = json!({"prompt": "x", "kv_transfer_params": {"do_remote_decode": true}});
    let (_, answer) = pod.post("/v1/completions", &[("X-Request-Id", "abc")], &body).await;
    assert_eq!(answer["id"], "cmpl-abc");
    let id = answer["kv_transfer_params"]["remote_request_id"].as_str().unwrap();
    let suffix = id.strip_prefix("cmpl-abc-0-").unwrap();
    assert!(suffix.len() == 8 && suffix.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert!(answer["kv_transfer_params"]["remote_port"].as_u64().unwrap() > 0);
    assert_eq!(answer["kv_transfer_params"]["tp_size"], 1);
}

#[tokio::test(start_paused = true)]
async fn bad_requests_are_answered_in_vllms_form() {
    let pod = pod(&loopback(), "--max-model-len 32").await;
    for (path, body, status, words) in [
        ("/v1/completions", json!({"prompt": 5}), 400, "prompt must be"),
        ("/v1/completions", json!({"prompt": ""}), 400, "cannot be empty"),
        ("/v1/completions", json!({"prompt": "x", "model": "other"}), 404, "The model `other` does not exist."),
        ("/v1/completions", json!({"prompt": "x", "stream_options": {}}), 400, "stream=True"),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 0}), 400, "max_tokens"),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 2, "min_tokens": 3}), 400, "min_tokens"),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 32}), 400, "maximum context length is 32"),
        ("/v1/completions", json!({"prompt": "x", "n": 0}), 400, "n must be"),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": "many"}), 400, "invalid body"),
        ("/v1/completions", json!([1]), 400, "invalid body"),
        ("/v1/completions", json!({"prompt": "x", "kv_transfer_params": [1]}), 400, "must be an object"),
        (
            "/v1/completions",
            json!({"prompt": "x", "kv_transfer_params": {"do_remote_prefill": true}}),
            400,
            "kv_transfer",
        ),
        ("/v1/chat/completions", json!({"prompt": "x"}), 400, "messages must be an array"),
    ] {
        let (found, answer) = pod.post(path, &[], &body).await;
        assert_eq!(found, status, "{body}: {answer}");
        let error = &answer["error"];
        assert!(error["message"].as_str().unwrap().contains(words), "{body}: {answer}");
        assert_eq!(error["code"], status);
    }
    assert_eq!(pod.stats().used_blocks.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_is_a_500_and_in_a_stream_an_event() {
    let seams = loopback();
    let (p, d) = (pod(&seams, "").await, pod(&seams, "").await);
    let other_model = pod(&seams, "--model other").await;
    let two_shards = pod(&seams, "--tensor-parallel-size 2").await;
    let prompt = prompt(1, 16);
    let good = p.prefill(&prompt).await;
    let with = |change: fn(&mut Value)| {
        let mut params = good.clone();
        change(&mut params);
        params
    };
    let failures = [
        ("another model", other_model.prefill(&prompt).await),
        ("another TP size", two_shards.prefill(&prompt).await),
        ("nobody there", with(|params| params["remote_port"] = json!(9))),
        ("another engine there", with(|params| params["remote_engine_id"] = json!("somebody"))),
        ("too few blocks", with(|params| params["remote_block_ids"] = json!([[1, 2, 3]]))),
        ("two groups", with(|params| params["remote_block_ids"] = json!([[1, 2, 3, 4], [5]]))),
        (
            "a block that is not there",
            with(|params| params["remote_block_ids"] = json!([[1, 2, 3, 4_000_000_000_u32]])),
        ),
    ];
    for (count, (what, params)) in failures.iter().enumerate() {
        let body = json!({"prompt": prompt, "kv_transfer_params": params});
        let (status, answer) = d.post("/v1/completions", &[], &body).await;
        assert_eq!(status, 500, "{what}: {answer}");
        assert_eq!(answer["error"]["message"], "Internal server error", "{what}");
        wait_for("its blocks are free", || d.stats().used_blocks.get() == 0).await;
        assert_eq!(d.stats().failed_transfers.get(), u64::try_from(count + 1).unwrap(), "{what}");
    }
    let body = json!({"prompt": prompt, "stream": true, "kv_transfer_params": failures[0].1});
    let events = events(d.send("/v1/completions", &[], &body).await).await;
    assert!(vllm_wire::openai::is_error_event(format!("data: {}\n\n", events[0]).as_bytes()), "{events:?}");
    assert_eq!(events[1], "[DONE]");
    assert_eq!(d.decode(&prompt, &good).await, p.plain(&prompt).await, "the right ones still work");
}

#[tokio::test(start_paused = true)]
async fn pages_are_vllms() {
    let pod = pod(&loopback(), "--data-parallel-size 2 --data-parallel-start-rank 4 --model m\"odel").await;
    assert_eq!(pod.get("/health").await.0, 200);
    assert_eq!(pod.get("/version").await.1, r#"{"version":"0.32.0"}"#);
    let models: Value = serde_json::from_str(&pod.get("/v1/models").await.1).unwrap();
    assert_eq!(models["data"][0]["id"], "m\"odel");
    let body = json!({"prompt": prompt(1, 16), "kv_transfer_params": {"do_remote_decode": true}});
    pod.post("/v1/completions", &[("x-data-parallel-rank", "1")], &body).await;
    let metrics = vllm_wire::metrics::parse(&pod.get("/metrics").await.1);
    assert_eq!(metrics.ranks.keys().copied().collect::<Vec<_>>(), [4, 5]);
    assert!(metrics.ranks[&5].kv_usage > 0.0, "pinned blocks are in use");
    assert!(metrics.process_start_time_seconds.unwrap() > 1e9);
}

#[tokio::test(start_paused = true)]
async fn a_fragile_listener_lives_as_long_as_it_is_asked_rightly() {
    let seams = loopback();
    let pod = pod(&seams, "--fragile-listener --data-parallel-size 2 --tensor-parallel-size 2").await;
    let ports = pod.pod.side_channel_ports();
    let to = |rank: usize| Endpoint::new("127.0.0.1", ports[rank]);
    let ask = async |rank: usize, question| seams.side_channel.ask(&to(rank), question, Duration::from_secs(5)).await;
    for tp in [0, 1, 1] {
        let answer = ask(0, handshake::request(&V0_32_0, 0, TpRank(tp))).await.unwrap();
        let reply = handshake::parse_reply(&V0_32_0, &answer).unwrap();
        let metadata = handshake::AgentMetadata::decode(&reply.payload.agent_metadata).unwrap();
        assert_eq!(metadata.engine_id, pod.pod.engines()[0].id);
        assert_eq!(metadata.layout().unwrap().regions.len(), 2);
    }
    assert!(ask(0, handshake::request(&V0_32_0, 0, TpRank(2))).await.is_err(), "an unknown shard");
    assert!(!pod.pod.is_listening(0));
    assert!(ask(1, "get_meta_msg".into()).await.is_err());
    assert!(!pod.pod.is_listening(1));
}

#[tokio::test(start_paused = true)]
async fn it_speaks_the_release_that_it_says_it_is() {
    let prompt = prompt(7, 30);
    for version in SUPPORTED {
        let (seams, flags) = (loopback(), format!("--vllm-version {}", version.release));
        let (p, d) = (pod(&seams, &flags).await, pod(&seams, &flags).await);
        let to = Endpoint::new("127.0.0.1", p.pod.side_channel_ports()[0]);
        let question = handshake::request(version, 0, TpRank(0));
        let answer = seams.side_channel.ask(&to, question, Duration::from_secs(5)).await.unwrap();
        let payload = handshake::parse_reply(version, &answer).unwrap().payload;
        let metadata = handshake::AgentMetadata::decode(&payload.agent_metadata).unwrap();
        assert_eq!(metadata.encode(version), payload.agent_metadata, "{}", version.release);
        let params = p.prefill(&prompt).await;
        assert_eq!(d.decode(&prompt, &params).await, p.plain(&prompt).await, "{}", version.release);
    }
}

//! Pods and their clients.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use clap::Parser;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use nixl::loopback::LoopbackNet;
use serde_json::{Value, json};
use side_channel::InProcess;
use sim::config::Args;
use sim::pod::Pod;
use sim::seams::{LoopbackAgents, Seams};
use tower::ServiceExt;

/// A small cache: 4 tokens per block.
pub(crate) const SMALL: &str =
    "--layers 2 --kv-heads 4 --head-size 8 --block-size 4 --num-blocks 129 --side-channel 127.0.0.1:0";

/// Ways out that stay inside this process.
pub(crate) fn loopback() -> Seams {
    let agents = LoopbackAgents::new(LoopbackNet::new());
    Seams { agents: std::sync::Arc::new(agents), side_channel: std::sync::Arc::new(InProcess::new()) }
}

/// A pod of small caches; flags given twice count the second time.
pub(crate) async fn pod(seams: &Seams, flags: &str) -> TestPod {
    let mut words: Vec<&str> = vec!["sim"];
    let more: Vec<&str> = flags.split_whitespace().collect();
    let small: Vec<&str> = SMALL.split_whitespace().collect();
    for pair in small.chunks(2) {
        if !more.contains(&pair[0]) {
            words.extend(pair);
        }
    }
    words.extend(more);
    let config = Args::try_parse_from(words).unwrap().pod().unwrap();
    let pod = Pod::start(config, seams).await.unwrap();
    TestPod { router: pod.router(), pod }
}

pub(crate) struct TestPod {
    pub(crate) pod: Pod,
    pub(crate) router: Router,
}

impl TestPod {
    pub(crate) async fn send(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> http::Response<Body> {
        let mut request = Request::post(path).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_string())).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> (StatusCode, Value) {
        let answer = self.send(path, headers, body).await;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = self.router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// The text of an unsplit run.
    pub(crate) async fn plain(&self, prompt: &Value) -> String {
        let (status, answer) = self.post("/v1/completions", &[], &json!({"prompt": prompt})).await;
        assert_eq!(status, 200, "{answer}");
        text(&answer)
    }

    /// Prefills and returns the params for a decode.
    pub(crate) async fn prefill(&self, prompt: &Value) -> Value {
        let body = json!({"prompt": prompt, "max_tokens": 1, "kv_transfer_params": {
            "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null, "remote_block_ids": null,
            "remote_host": null, "remote_port": null}});
        let (status, answer) = self.post("/v1/completions", &[], &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["kv_transfer_params"].clone()
    }

    /// The text of a decode with a prefill's params.
    pub(crate) async fn decode(&self, prompt: &Value, params: &Value) -> String {
        let body = json!({"prompt": prompt, "kv_transfer_params": params});
        let (status, answer) = self.post("/v1/completions", &[], &body).await;
        assert_eq!(status, 200, "{answer}");
        text(&answer)
    }

    pub(crate) fn stats(&self) -> &sim::stats::RankStats {
        &self.pod.engines()[0].stats
    }
}

pub(crate) fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("no text in {answer}")).to_owned()
}

/// A prompt of so many tokens.
pub(crate) fn prompt(first: u32, tokens: u32) -> Value {
    json!((0..tokens).map(|token| first + token % 97).collect::<Vec<_>>())
}

/// The data of each event of a stream.
pub(crate) async fn events(answer: http::Response<Body>) -> Vec<String> {
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.ends_with("\n\n"));
    text.trim_end().split("\n\n").map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
}

/// Waits for a level.
pub(crate) async fn wait_for(what: &str, level: impl Fn() -> bool) {
    let wait = async {
        while !level() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(), "not within 20 s: {what}");
}

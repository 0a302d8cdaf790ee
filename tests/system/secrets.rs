//! Logs, traces, receipts and every page say nothing of what clients say, nor of keys, however much is logged and whatever goes wrong.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::deployment::{Deployment, text_of};
use crate::otlp_receiver::Collector;
use crate::process::{PATIENCE, nixl_is_here, scratch_file, wait_for};

/// A word that no log line has by accident.
const PROMPT: &str = "wombatquux";
const KEY: &str = "client-key-zebrafinch";
/// How the file of keys names it.
const DIGEST: &str = "sha256:d8f774e68cd33f21102b1c2baa0dbdb98add843bb40933ab1e2ec9f2bfbd92c6";
const WRONG_KEY: &str = "wrong-key-narwhal";
const TOKEN: &str = "sidecar-token-okapi";
const ADMIN: &str = "admin-token-axolotl";

/// The whole answer to a GET.
fn page(port: u16, path: &str, token: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the process listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    let head =
        format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("the request is sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Every page of both processes that ends, with what stands in it for ids.
fn pages(deployment: &Deployment) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut ask = |name: &str, port: u16, path: &str, token: &str| {
        let answer = page(port, path, token);
        assert!(answer.starts_with("HTTP/1.1 200"), "{name} {path}: {answer}");
        let json = answer.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str::<Value>(body).ok());
        all.push((format!("{name} {path}"), answer));
        json.unwrap_or(Value::Null)
    };
    let router = deployment.router.http;
    let requests = ask("router", router, "/v1/requests?slowest=50", ADMIN);
    let one = requests["requests"][0]["id"].as_str().expect("a request").to_owned();
    for path in ["/readyz", "/livez", "/health", "/metrics", "/version", "/v1/workers", "/v1/log-level"] {
        ask("router", router, path, ADMIN);
    }
    ask("router", router, &format!("/v1/requests/{one}"), ADMIN);
    for (name, sidecar) in [("prefill", &deployment.prefill_sidecar), ("decode", &deployment.decode_sidecar)] {
        let transfers = ask(name, sidecar.http, "/v1/transfers", TOKEN);
        if name == "decode" {
            let one = transfers["transfers"][0]["transfer_id"].as_str().expect("a transfer").to_owned();
            ask(name, sidecar.http, &format!("/v1/transfers/{one}"), TOKEN);
            ask(name, sidecar.http, &format!("/v1/transfers/{one}/trace"), TOKEN);
        }
        for path in [
            "/v1/latency",
            "/v1/peers",
            "/v1/ranks",
            "/v1/ranks/0",
            "/v1/handles",
            "/v1/log-level",
            "/livez",
            "/readyz",
            "/metrics",
            "/version",
            "/openapi.json",
            "/debug",
        ] {
            ask(name, sidecar.http, path, TOKEN);
        }
    }
    all
}

#[test]
fn nothing_that_is_written_or_shown_tells_prompts_answers_token_ids_or_keys() {
    if !nixl_is_here() {
        return;
    }
    let collector = Collector::start("200 OK");
    let (_keys, keys) = scratch_file("keys", format!("{DIGEST} name=test\n").as_bytes());
    let (_token, token) = scratch_file("token", format!("{TOKEN}\n").as_bytes());
    let (_admin, admin) = scratch_file("admin", format!("{ADMIN}\n").as_bytes());
    let (_receipts, receipts) = scratch_file("receipts", b"");
    let token = format!("--log trace --token-file {} --otlp-endpoint http://{}", token.display(), collector.address);
    let for_router = format!(
        "{token} --api-keys-file {} --admin-token-file {} --max-body-bytes 65536 --debug-headers --report-handles-after-ms 0",
        keys.display(),
        admin.display()
    );
    let for_sidecars = format!("{token} --verify full --receipt-log {}", receipts.display());
    let deployment = Deployment::start(&for_sidecars, &for_router);
    let bearer = format!("Bearer {KEY}");
    let post = |path: &str, body: &str| deployment.post(path, &[("authorization", &bearer)], body);
    let said = format!("{PROMPT} and {PROMPT} again, with as many words as fill a block or two of the cache");
    // Token ids that stand beside one another nowhere else.
    let ids = "90,81,79,88,74,86,75,90,87,81,72,88,76,89,85,77,90,83";

    let (status, answer) = post("/v1/completions", &format!(r#"{{"model":"m","prompt":"{said}","max_tokens":12}}"#));
    assert_eq!(status, 200, "{answer}");
    let answered = text_of(&answer);
    assert!(answered.len() >= 8, "{answer}");
    let good = [
        ("/v1/completions", format!(r#"{{"model":"m","prompt":[{ids}],"max_tokens":4,"stream":true}}"#)),
        (
            "/v1/chat/completions",
            format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":"{said}"}}],"max_tokens":4,"stream":true}}"#
            ),
        ),
        ("/v1/completions", format!(r#"{{"model":"m","prompt":["{said}","{said}!"],"max_tokens":2}}"#)),
    ];
    for (path, body) in &good {
        let (status, answer) = post(path, body);
        assert_eq!(status, 200, "{path}: {answer}");
    }
    let bad = [
        ("/v1/completions", format!(r#"{{"prompt":"{said}""#)),
        ("/v1/completions", format!(r#"{{"prompt":"{said}","n":"{said}"}}"#)),
        ("/v1/completions", format!(r#"{{"model":"m","prompt":"{}"}}"#, said.repeat(2000))),
        ("/v1/completions", format!(r#"{{"model":"m","prompt":"{}","max_tokens":1}}"#, said.repeat(100))),
        ("/v1/embeddings", format!(r#"{{"input":"{said}"}}"#)),
        ("/nowhere", said),
    ];
    for (path, body) in &bad {
        let (status, answer) = post(path, body);
        assert!(status >= 400, "{path}: {answer}");
    }
    let refused = deployment.post("/v1/completions", &[("authorization", &format!("Bearer {WRONG_KEY}"))], &good[0].1);
    assert_eq!(refused.0, 401);
    let admin = format!("Bearer {ADMIN}");
    assert_eq!(deployment.post("/v1/workers", &[("authorization", &admin)], "{}").0 / 100, 4);

    let mut shown = pages(&deployment);

    // The decode engine dies: every step of the ladder, and what the sidecars say of it.
    let Deployment { decode, prefill_sidecar, decode_sidecar, router, .. } = &deployment;
    let pid = i32::try_from(decode.pid()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    for (path, body) in &good {
        let (status, answer) = post(path, body);
        assert!(status >= 500, "{path}: {answer}");
    }
    wait_for("the sidecar's word on its engine", || {
        decode_sidecar.log().to_lowercase().contains("engine").then_some(())
    });

    let has = |said: &[(String, String)], what: &str| said.iter().any(|(name, _)| name.starts_with(what));
    let mut spans = Vec::new();
    wait_for("spans of everybody", || {
        let sent = collector.next(PATIENCE)?;
        spans.extend(sent.into_iter().map(|span| (format!("{} {}", span.service, span.name), format!("{span:?}"))));
        (has(&spans, "kvgate-router request") && has(&spans, "kvgate-sidecar transfer")).then_some(())
    });
    shown.extend(spans);
    let receipts = std::fs::read_to_string(&receipts).expect("the receipts");
    assert!(receipts.lines().count() >= 3, "{receipts}");
    shown.push(("receipts".to_owned(), receipts));
    for (name, process) in
        [("router", router), ("prefill sidecar", prefill_sidecar), ("decode sidecar", decode_sidecar)]
    {
        let log = process.log();
        assert!(log.contains("TRACE") && log.lines().count() > 50, "{name} logs at trace:\n{log}");
        shown.push((format!("log of the {name}"), log));
    }
    let spaced = ids.replace(',', ", ");
    let secrets = [PROMPT, KEY, WRONG_KEY, TOKEN, ADMIN, ids, spaced.as_str(), answered.as_str()];
    for (where_, text) in shown {
        for secret in secrets {
            let told: Vec<&str> = text.lines().filter(|line| line.contains(secret)).take(3).collect();
            assert!(told.is_empty(), "{where_} tells {secret:?}:\n{}", told.join("\n"));
        }
    }
}

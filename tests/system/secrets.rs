//! Logs say nothing of what clients say, nor of keys, however much is logged and whatever goes wrong.

use crate::deployment::{Deployment, text_of};
use crate::process::{nixl_is_here, scratch_file, wait_for};

/// A word that no log line has by accident.
const PROMPT: &str = "wombatquux";
const KEY: &str = "client-key-zebrafinch";
/// How the file of keys names it.
const DIGEST: &str = "sha256:d8f774e68cd33f21102b1c2baa0dbdb98add843bb40933ab1e2ec9f2bfbd92c6";
const WRONG_KEY: &str = "wrong-key-narwhal";
const TOKEN: &str = "sidecar-token-okapi";
const ADMIN: &str = "admin-token-axolotl";

#[test]
fn no_log_tells_prompts_answers_token_ids_or_keys() {
    if !nixl_is_here() {
        return;
    }
    let (_keys, keys) = scratch_file("keys", format!("{DIGEST} name=test\n").as_bytes());
    let (_token, token) = scratch_file("token", format!("{TOKEN}\n").as_bytes());
    let (_admin, admin) = scratch_file("admin", format!("{ADMIN}\n").as_bytes());
    let token = format!("--log trace --token-file {}", token.display());
    let for_router = format!(
        "{token} --api-keys-file {} --admin-token-file {} --max-body-bytes 65536 --debug-headers --report-handles-after-ms 0",
        keys.display(),
        admin.display()
    );
    let deployment = Deployment::start(&token, &for_router);
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

    let spaced = ids.replace(',', ", ");
    for (name, process) in
        [("router", router), ("prefill sidecar", prefill_sidecar), ("decode sidecar", decode_sidecar)]
    {
        let log = process.log();
        assert!(log.contains("TRACE") && log.lines().count() > 50, "{name} logs at trace:\n{log}");
        let secrets = [PROMPT, KEY, WRONG_KEY, TOKEN, ADMIN, ids, spaced.as_str(), answered.as_str()];
        for secret in secrets {
            let told: Vec<&str> = log.lines().filter(|line| line.contains(secret)).take(3).collect();
            assert!(told.is_empty(), "{name} logs {secret:?}:\n{}", told.join("\n"));
        }
    }
}

//! The pod's engine: answers, is of a release that we know, listens on its side channel, and fails loudly.

use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use side_channel::Endpoint;
use tokio::net::TcpStream;
use tokio::time::timeout;
use vllm_wire::versions;

use super::line::Line;
use crate::ask::{Asker, with_causes};

const HEALTH: &str = "engine";
const VERSION: &str = "engine-version";
const SIDE_CHANNEL: &str = "engine-side-channel";
const POLICY: &str = "kv-load-failure-policy";
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// `/health` and `/version`.
pub(super) async fn lines(asker: &Asker, engine: Option<&str>) -> Vec<Line> {
    let Some(engine) = engine else {
        let why = "no --engine URL (KVGATE_ENGINE) was given";
        return vec![Line::skip(HEALTH, why), Line::skip(VERSION, why)];
    };
    let health = match asker.get(engine, "/health").await {
        Ok(answer) if answer.status.is_success() => Line::ok(HEALTH, format!("{engine} is healthy")),
        Ok(answer) => Line::fail(
            HEALTH,
            format!("{engine}/health answers {}", answer.status.as_u16()),
            "503 means a dead engine: read vLLM's log; anything else: is that vLLM's address?",
        ),
        Err(error) => {
            let fix = "start vLLM, or correct --engine: vLLM's own HTTP port (8000 unless --port says otherwise), in this pod";
            let down = Line::fail(HEALTH, with_causes(&error), fix).with("engine", engine);
            return vec![down, Line::skip(VERSION, "the engine does not answer")];
        }
    };
    vec![health.with("engine", engine), version(asker, engine).await]
}

async fn version(asker: &Asker, engine: &str) -> Line {
    let answer = match asker.get(engine, "/version").await {
        Ok(answer) => answer,
        Err(error) => return Line::fail(VERSION, with_causes(&error), "see the line engine"),
    };
    judge_version(answer.status, &answer.body)
}

fn judge_version(status: StatusCode, body: &Value) -> Line {
    let Some(found) = body.get("version").and_then(Value::as_str) else {
        let fix = "--engine must be vLLM's own address, without a router or proxy before it";
        return Line::fail(VERSION, format!("/version answers {} and no version", status.as_u16()), fix);
    };
    let line = match versions::supported(found) {
        Ok(known) => Line::ok(VERSION, format!("vLLM {found} is supported (connector version {})", known.connector)),
        Err(error) => Line::fail(VERSION, error.to_string(), "run a supported vLLM, the same on P and D"),
    };
    line.with("version", found)
}

/// Each rank's side channel takes a connection. Nothing is asked: a question that vLLM does not expect ends its listener.
pub(super) async fn side_channel(base: Option<&Endpoint>, first_rank: u16, ranks: u16) -> Line {
    let Some(base) = base else {
        return Line::skip(SIDE_CHANNEL, "neither --engine-side-channel nor --engine was given");
    };
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for rank in first_rank..first_rank.saturating_add(ranks) {
        let at = base.with_port(base.port.saturating_add(rank));
        match timeout(CONNECT_WITHIN, TcpStream::connect((at.host.as_str(), at.port))).await {
            Ok(Ok(_connection)) => open.push(at.to_string()),
            Ok(Err(error)) => closed.push(format!("rank {rank} at {at}: {error}")),
            Err(_) => closed.push(format!("rank {rank} at {at}: no answer within {CONNECT_WITHIN:?}")),
        }
    }
    let line = if closed.is_empty() {
        Line::ok(SIDE_CHANNEL, format!("{} of {ranks} ranks listen, from {base} on", open.len()))
    } else {
        let fix = "vLLM listens at VLLM_NIXL_SIDE_CHANNEL_HOST:VLLM_NIXL_SIDE_CHANNEL_PORT + rank once it has a kv-transfer-config with \
                   NixlConnector: give --engine-side-channel that host and port, and --data-parallel-size its ranks";
        Line::fail(SIDE_CHANNEL, closed.join("\n"), fix)
    };
    line.with("open", open).with("closed", closed)
}

/// What becomes of a request whose KV could not be loaded, where that can be seen: on the command line of a vLLM whose processes are
/// visible from here.
pub(super) fn policy(root: &Path) -> Line {
    let lines = command_lines(&root.join("proc"));
    let configs: Vec<&String> = lines.iter().filter(|line| line.contains("kv_connector")).collect();
    let Some(config) = configs.first() else {
        return Line::skip(
            POLICY,
            "no vLLM with a --kv-transfer-config is visible from here (another container, without shareProcessNamespace); \
             it must say kv_load_failure_policy fail, which is vLLM's default",
        );
    };
    // `"kv_load_failure_policy":"recompute"`, with or without spaces, or as `--kv-transfer-config.kv_load_failure_policy recompute`.
    let policy = config.split_once("kv_load_failure_policy").map(|(_, rest)| {
        let word = rest.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
        word.chars().take_while(char::is_ascii_alphabetic).collect::<String>()
    });
    let line = match policy.as_deref() {
        None => Line::ok(POLICY, "vLLM's command line leaves kv_load_failure_policy at its default, fail"),
        Some("fail") => Line::ok(POLICY, "kv_load_failure_policy is fail"),
        Some(other) => Line::warn(
            POLICY,
            format!(
                "kv_load_failure_policy is {other}: a KV that did not load is computed again on D, slowly and unseen"
            ),
            "set \"kv_load_failure_policy\":\"fail\" in vLLM's --kv-transfer-config",
        ),
    };
    line.with("policy", policy.unwrap_or_else(|| "fail".to_owned()))
}

/// Arguments of every process, joined by spaces. Only looked through, never shown.
fn command_lines(proc_folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(proc_folder).into_iter().flatten().flatten();
    let processes = entries.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::line::Status;
    use serde_json::json;

    #[test]
    fn versions_are_those_of_the_table() {
        let judge = |body| judge_version(StatusCode::OK, &body);
        assert_eq!(judge(json!({ "version": "0.32.0+cpu" })).status, Status::Ok);
        let unknown = judge(json!({ "version": "0.9.9" }));
        assert_eq!((unknown.status, unknown.facts["version"].as_str()), (Status::Fail, Some("0.9.9")));
        assert!(unknown.says.contains("0.30.0"));
        assert_eq!(judge(Value::Null).status, Status::Fail);
    }

    #[test]
    fn the_policy_is_read_from_a_visible_command_line() {
        let policy_of = |config: &str| {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(root.path().join("proc/42")).unwrap();
            std::fs::write(
                root.path().join("proc/42/cmdline"),
                format!("vllm\0serve\0--kv-transfer-config\0{config}\0"),
            )
            .unwrap();
            policy(root.path())
        };
        assert_eq!(policy_of(r#"{"kv_connector":"NixlConnector"}"#).status, Status::Ok);
        let set = |policy: &str| {
            policy_of(&format!(r#"{{"kv_connector":"NixlConnector", "kv_load_failure_policy" : "{policy}"}}"#))
        };
        assert_eq!(set("fail").status, Status::Ok);
        assert_eq!(set("recompute").status, Status::Warn);
        assert_eq!(policy_of("{}").status, Status::Skip);
    }

    #[tokio::test]
    async fn ranks_that_do_not_listen_are_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base = Endpoint::new("127.0.0.1", taken.local_addr().unwrap().port());
        assert_eq!(side_channel(Some(&base), 0, 1).await.status, Status::Ok);
        drop(taken);
        let line = side_channel(Some(&base), 0, 1).await;
        assert!(line.status == Status::Fail && line.says.contains("rank 0 at 127.0.0.1"), "{line:?}");
        assert_eq!(side_channel(None, 0, 1).await.status, Status::Skip);
    }
}

//! `--peer URL`: the peer's sidecar opens a probe, a child of ours reads it over NIXL.

use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::child::{self, Ended};
use super::line::Line;
use super::measure::{Measured, Probe};
use super::nixl::causes;
use crate::ask::{Asker, with_causes};

const CHECK: &str = "peer-transfer";
/// An agent, an endpoint, 50 small and 5 large reads; longer than that is no transfer to wait for.
const PATIENCE: Duration = Duration::from_secs(25);
/// Below this a KV of some hundred MiB takes longer than computing it again might. GB/s.
const SLOW: f64 = 0.5;
const FIX: &str = "UCX connects to the addresses and ports that the peer's interfaces have, any of them: allow that between the pods (NetworkPolicy, \
                   firewall), name the right interface on both sides (UCX_NET_DEVICES), and see the lines ucx and ucx-tls";

pub(super) async fn line(asker: &Asker, peer: Option<&str>, library: Option<&Path>) -> Line {
    let Some(peer) = peer else {
        return Line::skip(CHECK, "give --peer URL, another pod's sidecar, for a measured test transfer");
    };
    let line = match open(asker, peer).await {
        Ok(probe) => {
            let ended = measure(&probe, library).await;
            // It goes by itself in half a minute, should this not reach it.
            drop(asker.delete(peer, "/v1/probe").await);
            judge(peer, &ended)
        }
        Err(line) => line,
    };
    line.with("peer", peer)
}

async fn open(asker: &Asker, peer: &str) -> Result<Probe, Line> {
    let answer = asker.post(peer, "/v1/probe", &json!({})).await;
    let answer =
        answer.map_err(|error| Line::fail(CHECK, with_causes(&error), "is that sidecar reachable from here?"))?;
    let detail = answer.body.get("detail").and_then(Value::as_str).unwrap_or_default();
    match answer.status {
        StatusCode::CREATED => serde_json::from_value(answer.body.clone()).map_err(|error| {
            Line::fail(
                CHECK,
                format!("{peer} opened a probe that cannot be read: {error}"),
                "run the same kvgate here and there",
            )
        }),
        StatusCode::NOT_FOUND => Err(Line::skip(CHECK, format!("{peer} is a build without /v1/probe"))),
        StatusCode::UNAUTHORIZED => {
            Err(Line::fail(CHECK, format!("{peer} wants a token"), "give --token-file the file that the sidecars have"))
        }
        StatusCode::CONFLICT => Err(Line::skip(CHECK, format!("{peer}: {detail}"))),
        other => {
            let says = format!("{peer} does not open a probe: {} {detail}", other.as_u16());
            Err(Line::fail(CHECK, says, "run kvgate doctor in that pod: its NIXL may be broken"))
        }
    }
}

async fn measure(probe: &Probe, library: Option<&Path>) -> Ended<Measured> {
    let mut args = vec!["--probe".to_owned(), "transfer".to_owned()];
    if let Some(library) = library {
        args.extend(["--nixl-library".to_owned(), library.display().to_string()]);
    }
    let input = serde_json::to_vec(probe).unwrap_or_default();
    match child::command(&args) {
        Ok(command) => child::finish(command, &input, PATIENCE).await,
        Err(error) => Ended { told: None, words: Vec::new(), trouble: Some(error.to_string()) },
    }
}

fn judge(peer: &str, ended: &Ended<Measured>) -> Line {
    let Some(measured) = &ended.told else {
        let how = ended.trouble.as_deref().unwrap_or("told nothing");
        return Line::fail(CHECK, format!("the test transfer from {peer} {how}"), FIX)
            .with("words", causes(&ended.words));
    };
    if let Some(error) = &measured.error {
        let mut says = format!("no test transfer from {peer}: {error}");
        for cause in causes(&ended.words) {
            says.push('\n');
            says.push_str(&cause);
        }
        return Line::fail(CHECK, says, FIX);
    }
    let says = format!(
        "{} MiB from {peer} at {:.2} GB/s; {} bytes in {} µs (at most {} µs); first contact {:.1} ms",
        measured.whole_bytes >> 20,
        measured.gigabytes_per_second,
        measured.small_bytes,
        measured.small_p50_us,
        measured.small_max_us,
        Duration::from_micros(measured.contact_us).as_secs_f64() * 1000.0,
    );
    let line = if !measured.right {
        let fix = "this network or its driver corrupts data: use another transport (UCX_TLS=tcp) to see which, and other nodes";
        Line::fail(CHECK, format!("{says}; the bytes that arrived are not those that were sent"), fix)
    } else if measured.gigabytes_per_second < SLOW {
        Line::warn(
            CHECK,
            format!("{says}; that is slow"),
            "see the lines ucx, ucx-tls and rdma: is this the network that you meant?",
        )
    } else {
        Line::ok(CHECK, says)
    };
    line.with("measured", serde_json::to_value(measured).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::line::Status;

    #[test]
    fn slow_wrong_and_failed_are_told_apart() {
        let judged =
            |measured| judge("http://p:7700", &Ended { told: Some(measured), words: Vec::new(), trouble: None });
        let good = Measured {
            right: true,
            gigabytes_per_second: 7.3,
            whole_bytes: 64 << 20,
            contact_us: 35_000,
            ..Measured::default()
        };
        let line = judged(good.clone());
        assert!(line.status == Status::Ok && line.says.contains("64 MiB from http://p:7700 at 7.30 GB/s"), "{line:?}");
        assert_eq!(judged(Measured { gigabytes_per_second: 0.1, ..good.clone() }).status, Status::Warn);
        assert_eq!(judged(Measured { right: false, ..good }).status, Status::Fail);
        assert_eq!(judged(Measured::failed("unreachable".to_owned())).status, Status::Fail);
        let silent = Ended {
            told: None,
            words: vec!["UCX ERROR connect failed".to_owned()],
            trouble: Some("had not ended".to_owned()),
        };
        let line = judge("p", &silent);
        assert!(line.status == Status::Fail && line.facts["words"][0] == "UCX ERROR connect failed", "{line:?}");
    }
}

//! Two or more sidecars side by side: P and D must run the same, and their clocks should agree.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::line::Line;
use crate::ask::{Answer, AskError, Asker, with_causes};

/// `Date` has whole seconds, so less than two of them says nothing.
const SKEW: Duration = Duration::from_secs(2);

/// What one sidecar says.
#[derive(Debug)]
struct Pod {
    url: String,
    version: Value,
    ranks: Vec<Value>,
    /// Its clock against ours; positive: it is ahead. Seconds.
    ahead: Option<f64>,
}

/// Asks each; compares when there are two.
pub(super) async fn lines(asker: &Asker, urls: &[String]) -> Vec<Line> {
    let (mut lines, mut pods) = (Vec::new(), Vec::new());
    for url in urls {
        match ask(asker, url).await {
            Ok(pod) => {
                lines.push(ready(&pod));
                pods.push(pod);
            }
            Err(line) => lines.push(line),
        }
    }
    if let [_, _, ..] = pods.as_slice() {
        lines.extend([builds(&pods), engines(&pods), hashes(&pods), geometry(&pods), clocks(&pods)]);
    } else {
        let why = "give --sidecar URL twice, of a prefill and a decode pod (and --token-file, if they have one)";
        lines.push(Line::skip("compatibility", why));
        lines.extend(pods.is_empty().then(|| Line::skip("clock", why)));
        lines.extend((!pods.is_empty()).then(|| clocks(&pods)));
    }
    lines.push(monotonic());
    lines
}

async fn ask(asker: &Asker, url: &str) -> Result<Pod, Line> {
    const CHECK: &str = "sidecar";
    let unreachable = |error: &AskError| {
        Line::fail(
            CHECK,
            with_causes(error),
            "is that sidecar's --listen address reachable from here, and does it run?",
        )
        .with("url", url)
    };
    let before = wall_clock();
    let version = asker.get(url, "/version").await.map_err(|error| unreachable(&error))?;
    let ahead = ahead(&version, before);
    let ranks = asker.get(url, "/v1/ranks").await.map_err(|error| unreachable(&error))?;
    for answer in [&version, &ranks] {
        if answer.status == http::StatusCode::UNAUTHORIZED {
            let fix = "give --token-file the file that the sidecars have";
            return Err(Line::fail(CHECK, format!("{url} wants a token"), fix).with("url", url));
        }
    }
    let ranks = ranks.body.get("ranks").and_then(Value::as_array).cloned();
    let (true, Some(ranks)) = (version.status.is_success(), ranks) else {
        return Err(
            Line::fail(CHECK, format!("{url} does not answer like a kvgate sidecar"), "check the URL").with("url", url)
        );
    };
    Ok(Pod { url: url.to_owned(), version: version.body, ranks, ahead })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the wall clock is what is compared; this is its one place in the doctor"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// How far the `Date` header is ahead of the middle of the request.
fn ahead(answer: &Answer, before: SystemTime) -> Option<f64> {
    let date = answer.headers.get(http::header::DATE)?.to_str().ok()?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    let took = wall_clock().duration_since(before).unwrap_or_default();
    let ours = before + took / 2;
    Some(match theirs.duration_since(ours) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    })
}

fn ready(pod: &Pod) -> Line {
    let state = |rank: &Value| {
        let text = |field: &str| rank.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
        let reasons: Vec<&str> =
            rank.get("reasons").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        (
            text("state"),
            format!(
                "rank {} is {}: {}",
                rank.get("dp_rank").unwrap_or(&Value::Null),
                text("state"),
                reasons.join("; ")
            ),
        )
    };
    let states: Vec<(String, String)> = pod.ranks.iter().map(state).collect();
    let waiting: Vec<&str> =
        states.iter().filter(|(state, _)| state != "ready").map(|(_, words)| words.as_str()).collect();
    let line = if waiting.is_empty() {
        Line::ok("sidecar", format!("{}: all {} ranks are ready", pod.url, pod.ranks.len()))
    } else {
        let says = format!(
            "{}: {} of {} ranks are not ready\n{}",
            pod.url,
            waiting.len(),
            pod.ranks.len(),
            waiting.join("\n")
        );
        Line::fail("sidecar", says, "each rank's reasons say what it lacks")
    };
    line.with("url", pod.url.as_str())
}

/// What each pod says of one thing, grouped by what is said.
fn said(pods: &[Pod], of: impl Fn(&Pod) -> Vec<String>) -> BTreeMap<String, Vec<&str>> {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in pods {
        for what in of(pod) {
            let urls = groups.entry(what).or_default();
            if !urls.contains(&pod.url.as_str()) {
                urls.push(&pod.url);
            }
        }
    }
    groups
}

fn compared(check: &'static str, what: &str, groups: &BTreeMap<String, Vec<&str>>, fix: &str) -> Line {
    let listed =
        || groups.iter().map(|(what, urls)| format!("{what}: {}", urls.join(", "))).collect::<Vec<_>>().join("\n");
    let line = match groups.len() {
        0 => Line::skip(check, format!("no rank has told its {what} yet")),
        1 => Line::ok(
            check,
            format!("the {what} is the same everywhere: {}", groups.keys().cloned().collect::<String>()),
        ),
        _ => Line::fail(check, format!("the {what} differs\n{}", listed()), fix),
    };
    line.with("said", json!(groups))
}

fn of_ranks(pod: &Pod, pointer: &str) -> Vec<String> {
    let values = pod.ranks.iter().filter_map(|rank| rank.pointer(pointer));
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    values.map(text).collect()
}

/// kvgate's and NIXL's versions: a difference may work, and is a thing to know.
fn builds(pods: &[Pod]) -> Line {
    let of = |pod: &Pod| {
        let text = |pointer: &str| pod.version.pointer(pointer).and_then(Value::as_str).unwrap_or("?").to_owned();
        vec![format!("kvgate {} ({}), NIXL {}", text("/version"), text("/git_sha"), text("/nixl/version"))]
    };
    let line = compared("builds", "build", &said(pods, of), "run one kvgate and one NIXL everywhere");
    // P's and D's sidecars do not talk to one another, and NIXL's metadata is stable within 1.x: no failure by itself.
    if line.status == super::line::Status::Fail { Line { status: super::line::Status::Warn, ..line } } else { line }
}

fn engines(pods: &[Pod]) -> Line {
    let groups = said(pods, |pod| of_ranks(pod, "/engine_version"));
    compared("engine-versions", "vLLM version", &groups, "run the same vLLM release and build on P and D")
}

fn hashes(pods: &[Pod]) -> Line {
    let groups = said(pods, |pod| of_ranks(pod, "/compatibility_hash"));
    let fix = "P and D need the same vLLM build, --model string, dtype, KV-cache dtype, attention backend and connector settings";
    compared("compatibility", "compatibility hash", &groups, fix)
}

/// What the hash leaves out and a transfer needs: shards, block size and layout.
fn geometry(pods: &[Pod]) -> Line {
    let of = |pod: &Pod| {
        let told = pod.ranks.iter().filter_map(|rank| Some((rank.get("layout")?, rank.get("tp_size")?)));
        told.map(|(layout, tp)| {
            let field =
                |name: &str| layout.get(name).map_or_else(String::new, |value| value.to_string().replace('"', ""));
            format!(
                "TP {tp}, {} tokens per block, {} regions, layout {}, {}",
                field("block_tokens"),
                field("regions"),
                field("layout"),
                field("backend")
            )
        })
        .collect()
    };
    let fix = "give P and D the same --tensor-parallel-size, --block-size and attention backend";
    compared("geometry", "geometry", &said(pods, of), fix)
}

fn clocks(pods: &[Pod]) -> Line {
    let known: Vec<(&str, f64)> = pods.iter().filter_map(|pod| Some((pod.url.as_str(), pod.ahead?))).collect();
    clock_line(&known)
}

/// Leases travel as ages, so a skew breaks no transfer; but logs and traces of two pods then tell another order than what happened.
fn clock_line(ahead: &[(&str, f64)]) -> Line {
    const CHECK: &str = "clock";
    let (first, last) =
        ahead.iter().fold((0.0_f64, 0.0_f64), |(low, high), (_, ahead)| (low.min(*ahead), high.max(*ahead)));
    let listed: Vec<Value> = ahead.iter().map(|(url, ahead)| json!({ "url": url, "ahead_s": ahead })).collect();
    let apart = last - first;
    let line = if ahead.is_empty() {
        Line::skip(CHECK, "no sidecar told its time")
    } else if apart > SKEW.as_secs_f64() {
        let says =
            format!("clocks are {apart:.1} s apart (ours among them): logs and traces of two pods do not line up");
        Line::warn(CHECK, says, "run chrony or another NTP client on each node")
    } else {
        Line::ok(CHECK, "all clocks, ours among them, agree within two seconds, which is as fine as this can tell")
    };
    line.with("ahead", listed)
}

/// The clock that every stage is timed with never goes back.
fn monotonic() -> Line {
    const CHECK: &str = "clock-monotonic";
    const READS: u32 = 10_000;
    let start = Instant::now();
    let (mut last, mut back) = (start, 0_u32);
    for _ in 0..READS {
        let now = Instant::now();
        back = back.saturating_add(u32::from(now < last));
        last = now;
    }
    let each = last.duration_since(start) / READS;
    let line = if back > 0 {
        Line::fail(
            CHECK,
            format!("the monotonic clock went back {back} times in {READS}"),
            "use another node: its clock is broken",
        )
    } else if each > Duration::from_micros(5) {
        Line::warn(CHECK, format!("reading the clock takes {each:?}"), "see the line clock-source")
    } else {
        Line::ok(CHECK, format!("goes forward; reading it takes {each:?}"))
    };
    line.with("read_ns", u64::try_from(each.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::line::Status;

    fn pod(url: &str, hash: &str, engine: &str, tp: u16) -> Pod {
        let rank = json!({
            "dp_rank": 0, "state": "ready", "reasons": [], "engine_version": engine, "compatibility_hash": hash, "tp_size": tp,
            "layout": { "block_tokens": 16, "regions": 2, "layout": "HND", "backend": "FLASH_ATTN" },
        });
        let version = json!({ "version": "0.1.0", "git_sha": "abc", "nixl": { "version": "1.5.1" } });
        Pod { url: url.to_owned(), version, ranks: vec![rank], ahead: Some(0.0) }
    }

    #[test]
    fn equal_pods_are_well_and_each_difference_is_named() {
        let same = [pod("p", "h", "0.32.0", 1), pod("d", "h", "0.32.0", 1)];
        for line in [builds(&same), engines(&same), hashes(&same), geometry(&same), clocks(&same)] {
            assert_eq!(line.status, Status::Ok, "{line:?}");
        }
        let other = [pod("p", "h", "0.32.0", 1), pod("d", "other", "0.31.0", 2)];
        for line in [engines(&other), hashes(&other), geometry(&other)] {
            assert!(
                line.status == Status::Fail && line.says.contains("differs") && line.says.contains(": d"),
                "{line:?}"
            );
        }
        let silent = Pod { ranks: vec![json!({ "state": "handshaking" })], ..pod("p", "", "", 1) };
        assert_eq!(hashes(&[silent]).status, Status::Skip);
    }

    #[test]
    fn a_rank_that_is_not_ready_tells_its_reasons() {
        let mut pod = pod("p", "h", "0.32.0", 1);
        pod.ranks.push(json!({ "dp_rank": 1, "state": "degraded", "reasons": ["layout refused"] }));
        let line = ready(&pod);
        assert!(line.status == Status::Fail && line.says.contains("rank 1 is degraded: layout refused"), "{line:?}");
    }

    #[test]
    fn clocks_count_our_own() {
        assert_eq!(clock_line(&[("p", 0.4), ("d", -0.9)]).status, Status::Ok);
        assert_eq!(clock_line(&[("p", 0.4), ("d", -1.9)]).status, Status::Warn);
        assert_eq!(clock_line(&[("p", 60.0)]).status, Status::Warn);
        assert_eq!(clock_line(&[]).status, Status::Skip);
        assert_ne!(monotonic().status, Status::Fail);
    }
}

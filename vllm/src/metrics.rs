//! What we read from vLLM's `/metrics` (Prometheus text): load and transfer failures per DP rank (protocol doc §5, §6).

use std::collections::BTreeMap;

/// The most bytes that are read; a real page has some hundred KiB.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// The most ranks that are kept.
const MAX_RANKS: usize = 4096;

/// One DP rank. Numbers of several series (model names) are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankLoad {
    /// Requests in the batch.
    pub running: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Used share of the KV cache, 0 to 1.
    pub kv_usage: f64,
    /// Transfers that failed, handshakes and notifications included (readers).
    pub nixl_failed: u64,
    /// Notifications that could not be sent (readers).
    pub nixl_failed_notifications: u64,
    /// Requests whose blocks were freed before a reader came (producers).
    pub nixl_expired: u64,
    /// Notifications for blocks that had been freed already (producers).
    pub nixl_late_notifications: u64,
}

/// A page of metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Per `engine` label, the rank's global number.
    pub ranks: BTreeMap<u16, RankLoad>,
    /// When the process started, seconds since 1970; a new value is a restart.
    pub process_start_time_seconds: Option<f64>,
}

/// Reads a page; lines that say nothing to us, or nothing at all, are skipped.
pub fn parse(text: &str) -> Metrics {
    let mut metrics = Metrics::default();
    let mut read = 0_usize;
    for line in text.lines() {
        read = read.saturating_add(line.len());
        if read > MAX_BYTES {
            break;
        }
        if let Some(sample) = Sample::parse(line.trim()) {
            metrics.add(&sample);
        }
    }
    metrics
}

impl Metrics {
    fn add(&mut self, sample: &Sample<'_>) {
        if sample.name == "process_start_time_seconds" {
            self.process_start_time_seconds = Some(sample.value);
            return;
        }
        let Some(name) = sample.name.strip_prefix("vllm:") else { return };
        let known = [
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
            "nixl_num_failed_transfers_total",
            "nixl_num_failed_notifications_total",
            "nixl_num_kv_expired_reqs_total",
            "nixl_num_notifications_after_expiry_total",
        ];
        let Some(engine) = sample.label("engine").and_then(|engine| engine.parse::<u16>().ok()) else { return };
        let room = self.ranks.len() < MAX_RANKS || self.ranks.contains_key(&engine);
        if !known.contains(&name) || !room {
            return;
        }
        let rank = self.ranks.entry(engine).or_default();
        let count = match name {
            "num_requests_running" => &mut rank.running,
            "num_requests_waiting" => &mut rank.waiting,
            "nixl_num_failed_transfers_total" => &mut rank.nixl_failed,
            "nixl_num_failed_notifications_total" => &mut rank.nixl_failed_notifications,
            "nixl_num_kv_expired_reqs_total" => &mut rank.nixl_expired,
            "nixl_num_notifications_after_expiry_total" => &mut rank.nixl_late_notifications,
            _ => {
                rank.kv_usage = rank.kv_usage.max(sample.value.clamp(0.0, 1.0));
                return;
            }
        };
        *count = count.saturating_add(whole(sample.value));
    }
}

/// A count; Prometheus has floats only.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float-to-integer cast saturates")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// `name{label="value",…} number [timestamp]`
struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let name_end = line.find(|c: char| c == '{' || c.is_whitespace())?;
        let (name, rest) = line.split_at(name_end);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_at_checked(labels_end(rest)?)?,
            None => ("", rest),
        };
        let value = rest.trim_start_matches('}').split_whitespace().next()?.parse::<f64>().ok()?;
        // "NaN" parses, and means nothing to us.
        (!name.is_empty() && value.is_finite()).then_some(Self { name, labels, value })
    }

    /// The raw text of one label's value; the labels we ask for need no unescaping.
    fn label(&self, wanted: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (name, after) = rest.split_once("=\"")?;
            let end = quoted_end(after)?;
            let value = after.get(..end)?;
            if name.trim_matches([',', ' ']) == wanted {
                return Some(value);
            }
            rest = after.get(end + 1..)?;
        }
    }
}

/// Where the labels' closing brace is; braces inside values do not count.
fn labels_end(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        match rest.find(['"', '}'])? {
            found if rest.as_bytes().get(found) == Some(&b'}') => return Some(at + found),
            found => at += found + 1 + quoted_end(rest.get(found + 1..)?)? + 1,
        }
    }
}

/// Where a value's closing quote is.
fn quoted_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: &str = r#"# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="odd \"}{\\"} 1.234567e+06
vllm:num_requests_waiting{model_name="m,engine=\"7\"",engine="0"} 2.0 1700000000
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:nixl_num_failed_transfers_total{engine="1",model_name="m"} 4.0
vllm:nixl_num_kv_expired_reqs_total{engine="1"} 5
vllm:nixl_num_notifications_after_expiry_total{engine="1"} 6
vllm:nixl_num_failed_notifications_total{engine="1"} 7
vllm:nixl_num_failed_transfers_created{engine="1"} 1.7e9
process_start_time_seconds 1.76e+09
junk
vllm:num_requests_running{engine="x"} 1
vllm:num_requests_running{engine="2"} NaN
vllm:num_requests_running{engine="3" 1
vllm:num_requests_running{engine="4"}
"#;

    #[test]
    fn a_page_is_read_per_rank() {
        let metrics = parse(PAGE);
        assert_eq!(metrics.process_start_time_seconds, Some(1.76e9));
        assert_eq!(metrics.ranks.len(), 2);
        assert_eq!(metrics.ranks[&0], RankLoad { running: 3, waiting: 2, kv_usage: 0.25, ..RankLoad::default() });
        let one = RankLoad {
            running: 1_234_567,
            nixl_failed: 4,
            nixl_expired: 5,
            nixl_late_notifications: 6,
            nixl_failed_notifications: 7,
            ..RankLoad::default()
        };
        assert_eq!(metrics.ranks[&1], one);
    }

    #[test]
    fn a_missing_page_is_an_empty_one() {
        assert_eq!(parse(""), Metrics::default());
        assert_eq!(parse("<html>404</html>"), Metrics::default());
        assert_eq!(parse("vllm:num_requests_running{engine=\"0\"} -4").ranks[&0].running, 0);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[a-z:{}=\", \\\\0-9é\n]{0,120}") {
            drop(parse(&text));
            drop(parse(&format!("vllm:num_requests_running{text}")));
        }
    }
}

//! What the demo says at its end: a table for people, `report.json` for scripts.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::evidence::Evidence;

/// How one request went.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) verdict: Verdict,
    /// `P@i → D@j` as the router says.
    pub(super) ranks: String,
    pub(super) ttft: Duration,
    pub(super) prefill_ms: Option<f64>,
    /// The sidecar's view of its transfer, when there was one.
    pub(super) transfer: Option<Value>,
}

/// Right, wrong, or an error in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Correct,
    WrongText,
    ClearError(String),
}

/// `report.json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) gate: &'static str,
    /// How much was compared with digests of the source.
    pub(super) verify: String,
    /// Where the engines' caches were, and the staging.
    pub(super) memory: String,
    pub(super) staging: String,
    pub(super) fault: Option<&'static str>,
    pub(super) requests: usize,
    pub(super) correct: usize,
    pub(super) wrong_texts: usize,
    pub(super) clear_errors: usize,
    pub(super) decodes: usize,
    pub(super) decodes_without_receipt: usize,
    pub(super) receipts: usize,
    pub(super) bytes_moved: u64,
    pub(super) nixl: Value,
    pub(super) stages: BTreeMap<String, Percentiles>,
    /// What a control found beside the figures above.
    pub(super) notes: Vec<String>,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl Report {
    pub(super) fn new(outcomes: &[Outcome], evidence: Evidence, nixl: Value) -> Self {
        let count = |wanted: fn(&Verdict) -> bool| outcomes.iter().filter(|outcome| wanted(&outcome.verdict)).count();
        Self {
            gate: "stage",
            verify: String::new(),
            memory: String::new(),
            staging: String::new(),
            fault: None,
            requests: outcomes.len(),
            correct: count(|verdict| *verdict == Verdict::Correct),
            wrong_texts: count(|verdict| *verdict == Verdict::WrongText),
            clear_errors: count(|verdict| matches!(verdict, Verdict::ClearError(_))),
            decodes: evidence.decodes,
            decodes_without_receipt: evidence.without_receipt,
            receipts: evidence.receipts,
            bytes_moved: evidence.bytes_moved,
            nixl,
            stages: stages(outcomes),
            notes: Vec::new(),
        }
    }

    /// The last line.
    pub(super) fn summary(&self) -> String {
        format!(
            "demo: {}/{} correct, {} decodes without receipt",
            self.correct, self.requests, self.decodes_without_receipt
        )
    }

    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
    }
}

/// The heading of the table.
pub(super) fn heading() -> String {
    format!(
        "{:<26} {:>9} {:>7} {:>8} {:>11} {:>9} {:>11} {:>9}  {}",
        "request", "ranks", "blocks", "MiB", "prefill ms", "wire ms", "collect ms", "TTFT ms", "text"
    )
}

/// One line of the table.
pub(super) fn row(outcome: &Outcome) -> String {
    let number =
        |path: &str| outcome.transfer.as_ref().and_then(|transfer| transfer.pointer(path)).and_then(Value::as_f64);
    let collect = [stage(outcome, "landed_idle"), stage(outcome, "collect")].into_iter().flatten().reduce(|a, b| a + b);
    let text = match &outcome.verdict {
        Verdict::Correct => "correct".to_owned(),
        Verdict::WrongText => "WRONG".to_owned(),
        Verdict::ClearError(words) => words.clone(),
    };
    format!(
        "{:<26} {:>9} {:>7} {:>8} {:>11} {:>9} {:>11} {:>9.1}  {text}",
        outcome.name,
        outcome.ranks,
        cell(number("/blocks"), 0),
        cell(number("/bytes").map(|bytes| bytes / f64::from(1 << 20)), 1),
        cell(outcome.prefill_ms, 1),
        cell(stage(outcome, "wire"), 1),
        cell(collect, 1),
        outcome.ttft.as_secs_f64() * 1e3,
    )
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// A stage of a request's transfer in milliseconds.
fn stage(outcome: &Outcome, name: &str) -> Option<f64> {
    let micros = outcome.transfer.as_ref()?.pointer(&format!("/stages_us/{name}"))?.as_f64()?;
    Some(micros / 1e3)
}

fn stages(outcomes: &[Outcome]) -> BTreeMap<String, Percentiles> {
    let mut samples: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for outcome in outcomes {
        for name in ["queued", "handshake", "post", "wire", "verify", "landed_idle", "collect"] {
            if let Some(ms) = stage(outcome, name) {
                samples.entry(name.to_owned()).or_default().push(ms);
            }
        }
        if let Some(ms) = outcome.prefill_ms {
            samples.entry("prefill".to_owned()).or_default().push(ms);
        }
        if outcome.verdict == Verdict::Correct {
            samples.entry("ttft".to_owned()).or_default().push(outcome.ttft.as_secs_f64() * 1e3);
        }
    }
    samples.into_iter().filter_map(|(name, values)| Some((name, percentiles(values)?))).collect()
}

/// Nearest-rank percentiles; `None` of no values.
fn percentiles(mut values: Vec<f64>) -> Option<Percentiles> {
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| values.get((values.len() * percent).div_ceil(100).checked_sub(1)?).copied();
    Some(Percentiles { p50: at(50)?, p99: at(99)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let check = |values: &[f64], p50, p99| {
            assert_eq!(percentiles(values.to_vec()), Some(Percentiles { p50, p99 }));
        };
        check(&[3.0], 3.0, 3.0);
        check(&[4.0, 1.0, 3.0, 2.0], 2.0, 4.0);
        assert_eq!(percentiles(vec![]), None);
    }

    #[test]
    fn the_summary_counts_verdicts() {
        let outcome = |verdict| Outcome {
            name: String::new(),
            verdict,
            ranks: String::new(),
            ttft: Duration::ZERO,
            prefill_ms: None,
            transfer: None,
        };
        let outcomes = [Verdict::Correct, Verdict::WrongText, Verdict::ClearError("late".to_owned())].map(outcome);
        let evidence = Evidence { without_receipt: 2, ..Evidence::default() };
        let report = Report::new(&outcomes, evidence, Value::Null);
        assert_eq!((report.wrong_texts, report.clear_errors), (1, 1));
        assert_eq!(report.summary(), "demo: 1/3 correct, 2 decodes without receipt");
    }
}

//! The table.

use std::io::{Write as _, stderr, stdout};

use anyhow::Result;
use cuda::Gpu;
use serde_json::{Value, json};

/// A share of what a row is compared with that it is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal(pub(crate) &'static str, pub(crate) f64);

#[derive(Debug)]
pub(crate) struct Report {
    card: String,
    bytes: u64,
    /// GB/s by clock and bus, where the driver says them.
    bandwidth: Option<f64>,
    rows: Vec<Row>,
    notes: Vec<String>,
    /// What must be so, and whether it is.
    checks: Vec<(String, bool)>,
}

#[derive(Debug)]
struct Row {
    name: String,
    gb_per_s: f64,
    share: f64,
    goal: Option<Goal>,
}

impl Row {
    fn is_met(&self) -> bool {
        self.goal.is_none_or(|Goal(_, least)| self.share >= least)
    }

    fn verdict(&self) -> String {
        let Some(Goal(of, least)) = self.goal else { return String::new() };
        format!("goal ≥ {:.0} % {of}: {}", least * 100.0, if self.is_met() { "met" } else { "short" })
    }
}

impl Report {
    #[expect(clippy::cast_precision_loss, reason = "figures of a bench")]
    pub(crate) fn of(gpu: &Gpu, bytes: u64) -> Result<Self> {
        let bandwidth = gpu.memory_bandwidth()?.map(|bandwidth| bandwidth as f64 / 1e9);
        let memory = gpu.memory()?;
        let card = format!("{}, {} of {} MiB free", gpu.name(), memory.free >> 20, memory.total >> 20);
        Ok(Self { card, bytes, bandwidth, rows: Vec::new(), notes: Vec::new(), checks: Vec::new() })
    }

    /// The card's memory bandwidth in GB/s; `otherwise` where it does not say it.
    pub(crate) fn bandwidth_or(&self, otherwise: f64) -> f64 {
        self.bandwidth.unwrap_or(otherwise)
    }

    pub(crate) fn row(&mut self, name: &str, gb_per_s: f64, beside: f64, goal: Option<Goal>) {
        let share = if beside > 0.0 { gb_per_s / beside } else { 0.0 };
        self.rows.push(Row { name: name.to_owned(), gb_per_s, share, goal });
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub(crate) fn check(&mut self, what: String, so: bool) {
        self.checks.push((what, so));
    }

    /// Whether every goal is met and every check is so.
    pub(crate) fn is_met(&self) -> bool {
        self.rows.iter().all(Row::is_met) && self.checks.iter().all(|(_, so)| *so)
    }

    pub(crate) fn print(&self) -> Result<()> {
        let mut out = stdout().lock();
        writeln!(out, "{}; {} MiB in each row", self.card, self.bytes >> 20)?;
        match self.bandwidth {
            Some(bandwidth) => writeln!(out, "memory bandwidth by clock and bus: {bandwidth:.0} GB/s")?,
            None => writeln!(out, "the driver does not say the memory's clock: beside a plain copy instead")?,
        }
        for row in &self.rows {
            let line =
                format!("{:<36} {:>9.1} GB/s {:>6.1} %  {}", row.name, row.gb_per_s, row.share * 100.0, row.verdict());
            writeln!(out, "{}", line.trim_end())?;
        }
        for (what, so) in &self.checks {
            writeln!(out, "{what}: {}", if *so { "met" } else { "short" })?;
        }
        for note in &self.notes {
            writeln!(out, "{note}")?;
        }
        Ok(out.flush()?)
    }

    pub(crate) fn json(&self) -> String {
        let row = |row: &Row| json!({ "row": row.name, "gb_per_s": row.gb_per_s, "share": row.share, "goal": row.goal.map(|goal| goal.1), "met": row.is_met() });
        let rows: Vec<Value> = self.rows.iter().map(row).collect();
        let checks: Vec<Value> = self.checks.iter().map(|(what, so)| json!({ "what": what, "met": so })).collect();
        json!({
            "card": self.card, "bytes": self.bytes, "bandwidth_gb_per_s": self.bandwidth, "rows": rows, "checks": checks, "notes": self.notes,
        })
        .to_string()
    }
}

/// The last words.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nobody may be reading; the exit code says it too.
    drop(writeln!(stderr(), "bench-gpu: {error:#}"));
}

//! The figures of many seeds.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::run::Outcome;

/// All seeds together.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Table {
    pub seeds: u64,
    pub faults: BTreeMap<String, u64>,
    pub requests: u64,
    pub right: u64,
    pub clear_errors: u64,
    pub left: u64,
    pub wrong: u64,
    pub hung: u64,
    pub leaked_slots: u64,
    pub decodes: u64,
    pub decodes_without_receipt: u64,
    pub simulated_ms: u64,
    /// Seeds that broke a promise, and the first one that each broke.
    pub failed: BTreeMap<u64, String>,
}

impl Table {
    /// Adds a seed.
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        for (kind, count) in &outcome.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
        self.requests += outcome.requests;
        self.right += outcome.right;
        self.clear_errors += outcome.clear_errors;
        self.left += outcome.left;
        self.wrong += outcome.wrong;
        self.hung += outcome.hung;
        self.leaked_slots += outcome.leaked_slots;
        self.decodes += outcome.decodes;
        self.decodes_without_receipt += outcome.decodes_without_receipt;
        self.simulated_ms += outcome.simulated_ms;
        if let Some(first) = outcome.broken.first() {
            self.failed.insert(outcome.seed, first.clone());
        }
    }

    /// A seed that came to no end of its own.
    pub fn lost(&mut self, seed: u64, why: String) {
        self.seeds += 1;
        self.failed.insert(seed, why);
    }

    /// Whether every promise was kept.
    pub fn is_well(&self) -> bool {
        self.failed.is_empty()
            && self.wrong + self.hung + self.leaked_slots + self.decodes_without_receipt == 0
            && self.seeds > 0
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let all: u64 = self.faults.values().sum();
        let rows: [(&str, String); 11] = [
            ("seeds", format!("{} ({} s of simulated time)", self.seeds, self.simulated_ms / 1000)),
            ("faults injected", format!("{all} ({})", kinds.join(", "))),
            ("requests", self.requests.to_string()),
            ("right", self.right.to_string()),
            ("clear errors", self.clear_errors.to_string()),
            ("client left", self.left.to_string()),
            ("wrong", self.wrong.to_string()),
            ("hung", self.hung.to_string()),
            ("leaked slots", self.leaked_slots.to_string()),
            ("decodes", self.decodes.to_string()),
            ("decodes without receipt", self.decodes_without_receipt.to_string()),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:<24} {value}")?;
        }
        for (seed, first) in self.failed.iter().take(20) {
            writeln!(f, "seed {seed}: {first}")?;
        }
        if let Some((seed, _)) = self.failed.first_key_value() {
            writeln!(
                f,
                "{} of {} seeds failed; make soak SEED={seed} replays the first",
                self.failed.len(),
                self.seeds
            )?;
        }
        Ok(())
    }
}

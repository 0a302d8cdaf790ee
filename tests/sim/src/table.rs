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
    /// Of the run that held the most memory.
    pub peak_mib: u64,
    /// Seeds that broke a promise, and the first one that each broke.
    pub failed: BTreeMap<u64, String>,
    /// What happened in the first of them.
    #[serde(skip)]
    events: Option<(u64, Vec<String>)>,
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
        self.peak_mib = self.peak_mib.max(outcome.peak_mib.unwrap_or(0));
        if let Some(first) = outcome.broken.first() {
            self.failed.insert(outcome.seed, first.clone());
            if self.events.as_ref().is_none_or(|(seed, _)| outcome.seed < *seed) {
                self.events = Some((outcome.seed, outcome.log.clone()));
            }
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
        let rows: [(&str, String); 12] = [
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
            ("most memory of a run", format!("{} MiB", self.peak_mib)),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:<24} {value}")?;
        }
        if let Some((seed, events)) = &self.events {
            writeln!(f, "\nwhat happened in seed {seed}:")?;
            for event in events {
                writeln!(f, "{event}")?;
            }
            writeln!(f)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_fails_tells_what_happened_in_it_and_how_to_run_it_again() {
        let well = Outcome { seed: 1, requests: 2, right: 2, ..Outcome::default() };
        let broken = |seed: u64| Outcome {
            seed,
            broken: vec![format!("BROKEN G: in {seed}")],
            log: vec![format!("{seed} begins"), format!("{seed} ends")],
            ..Outcome::default()
        };
        let mut table = Table::default();
        table.add(&well);
        assert!(table.is_well() && !table.to_string().contains("replays"));
        table.add(&broken(9));
        table.add(&broken(5));
        table.add(&well);
        let text = table.to_string();
        assert!(!table.is_well());
        assert!(text.contains("5 begins\n5 ends\n") && !text.contains("9 begins"), "{text}");
        assert!(text.ends_with("2 of 4 seeds failed; make soak SEED=5 replays the first\n"), "{text}");
        table.failed.clear();
        for leak in [Table { wrong: 1, ..table.clone() }, Table { leaked_slots: 1, ..table }] {
            assert!(!leak.is_well());
        }
    }
}

//! The router beside its peer: CPU, latency and memory of both gates, as ratios.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use crate::draw::{Bars, Spread};

const BESIDE: &str = "peer";
/// Figure, and what it is called; all of them are costs.
const FIGURES: [(&str, &str); 6] = [
    ("latency_added_us", "added latency"),
    ("cpu_s_per_1000", "CPU per request"),
    ("cpu_s_per_million_chunks", "CPU per chunk"),
    ("first_token_added_us", "added first token"),
    ("rss_1000_streams_mb", "memory, 1,000 streams"),
    ("start_ms", "start to ready"),
];

#[derive(Debug, Deserialize)]
pub(crate) struct Found {
    /// Figure → kind → rounds.
    figures: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

pub(crate) fn plot(found: &Found, to: &Path) -> Result<()> {
    let measured: Vec<_> =
        FIGURES.iter().filter_map(|(figure, name)| Some((found.figures.get(*figure)?, *name))).collect();
    let series = ["direct", "stage"].map(|gate| {
        let beside = |kinds: &BTreeMap<String, Vec<f64>>| {
            let pairs = kinds.get(gate)?.iter().zip(kinds.get(BESIDE)?);
            Spread::of(pairs.filter(|(_, peer)| **peer > 0.0).map(|(mine, peer)| mine / peer).collect())
        };
        (format!("--gate {gate}"), measured.iter().map(|(kinds, _)| beside(kinds)).collect())
    });
    let bars = Bars {
        title: "The router's costs beside vllm-router's".to_owned(),
        axis: "of vllm-router's (less is better)".to_owned(),
        groups: measured.iter().map(|(_, name)| (*name).to_owned()).collect(),
        series: series.into(),
    };
    bars.draw(&to.join("router.svg"))
}

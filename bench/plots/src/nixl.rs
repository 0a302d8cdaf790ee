//! Reads between two processes: how many times as fast as NIXL's Python package, one plot per `UCX_TLS`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::draw::{Bars, Spread};

/// What everything is beside.
const BESIDE: &str = "python";

#[derive(Debug, Deserialize)]
pub(crate) struct Found {
    /// By `UCX_TLS`; each holds shapes in the order in which they were measured, but for `idle`.
    rows: BTreeMap<String, Map<String, Value>>,
}

/// One participant's round.
#[derive(Debug, Deserialize)]
struct Turn {
    p50_us: f64,
}

pub(crate) fn plot(found: &Found, to: &Path) -> Result<()> {
    for (name, shapes) in found.rows.iter().filter(|(name, _)| name.as_str() != "idle") {
        let mut groups = Vec::new();
        let mut series: Vec<(String, Vec<Option<Spread>>)> = Vec::new();
        for (shape, turns) in shapes {
            let Value::Object(turns) = turns else { continue };
            let beside = rounds(turns.get(BESIDE))?;
            for (who, turns) in turns.iter().filter(|(who, _)| who.as_str() != BESIDE) {
                let faster = rounds(Some(turns))?
                    .iter()
                    .zip(&beside)
                    .map(|(mine, theirs)| theirs.p50_us / mine.p50_us)
                    .collect();
                if !series.iter().any(|(name, _)| name == who) {
                    series.push((who.clone(), vec![None; groups.len()]));
                }
                if let Some((_, values)) = series.iter_mut().find(|(name, _)| name == who) {
                    // In the small shapes a copy within one process is a hundred times as fast as anything between two.
                    values.push(if shape.starts_with("1 ×") && who == "memcpy" { None } else { Spread::of(faster) });
                }
            }
            groups.push(shape.clone());
        }
        let tls = match name.as_str() {
            "default" => "UCX_TLS unset",
            "posix" => "UCX_TLS=posix,self, no error handling",
            other => &format!("UCX_TLS={other}"),
        };
        let title = format!("Reads between two processes, {tls}");
        let axis = "times as fast as NIXL's Python package".to_owned();
        Bars { title, axis, groups, series }.draw(&to.join(format!("nixl-{name}.svg")))?;
    }
    Ok(())
}

fn rounds(turns: Option<&Value>) -> Result<Vec<Turn>> {
    Ok(serde_json::from_value(turns.cloned().unwrap_or(Value::Array(Vec::new())))?)
}

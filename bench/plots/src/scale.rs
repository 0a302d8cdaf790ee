//! Costs while something grows, each beside its cost at the smallest size.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use crate::draw::Lines;

#[derive(Debug, Deserialize)]
pub(crate) struct Found {
    #[serde(default)]
    curves: Vec<Curve>,
}

/// One thing that grows, and what costs did meanwhile.
#[derive(Debug, Deserialize)]
struct Curve {
    /// The plot's file, without its ending.
    name: String,
    title: String,
    grows: String,
    /// Name of a cost, and its points: (size, cost).
    costs: Vec<(String, Vec<(f64, f64)>)>,
}

pub(crate) fn plot(found: &Found, to: &Path) -> Result<()> {
    for curve in &found.curves {
        let beside_first = |points: &[(f64, f64)]| {
            let first = points.first().map_or(1.0, |point| point.1);
            points.iter().map(|point| (point.0, point.1 / first)).collect()
        };
        let lines = Lines {
            title: curve.title.clone(),
            grows: curve.grows.clone(),
            axis: "of the cost at the smallest size".to_owned(),
            series: curve.costs.iter().map(|(name, points)| (name.clone(), beside_first(points))).collect(),
        };
        lines.draw(&to.join(format!("scale-{}.svg", curve.name)))?;
    }
    Ok(())
}

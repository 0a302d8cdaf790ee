//! Grouping counted values for `/v1/latency`.

use std::collections::BTreeMap;
use std::time::Duration;

use kv::ids::{DpRank, EngineId};
use side_channel::Endpoint;

use super::causes::{self, Cause};
use super::window::{Copied, Sum};
use super::{Series, TOTAL};
use crate::model::Stages;

/// What groups are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By {
    /// One group per DP rank.
    pub rank: bool,
    /// One per remote engine.
    pub peer: bool,
    /// One per stage; otherwise the whole time to the receipt is told.
    pub stage: bool,
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// How far back.
    pub window: Duration,
    /// What groups are made by.
    pub by: By,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// How many transfers.
    pub count: u64,
    /// Half of them took at most this.
    pub p50: u64,
    /// 90 % of them.
    pub p90: u64,
    /// 99 % of them.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The rank, if groups are made by it.
    pub dp_rank: Option<DpRank>,
    /// The peer, if groups are made by it; `Some(None)` is all those that are not kept apart.
    pub peer: Option<Option<EngineId>>,
    /// Where that peer's side channel is.
    pub address: Option<Endpoint>,
    /// The stage, if groups are made by it.
    pub stage: Option<&'static str>,
    /// Its percentiles.
    pub figures: Figures,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How far back the values really go: sub-windows are taken whole.
    pub covered: Duration,
    /// In the order of rank, peer, stage.
    pub groups: Vec<Group>,
    /// Peers and ranks that make a stage slow, the worst first.
    pub causes: Vec<Cause>,
}

type Key = (Option<DpRank>, Option<Option<EngineId>>, Option<usize>);

pub(super) fn report(query: &Query, copied: &Copied) -> Report {
    let by = query.by;
    let mut sums: BTreeMap<Key, (Sum, Option<&Series>)> = BTreeMap::new();
    for (series, measure, cell) in copied.cells() {
        let wanted = if by.stage { measure < TOTAL } else { measure == TOTAL };
        if wanted {
            let key =
                (by.rank.then_some(series.dp_rank), by.peer.then(|| series.peer.clone()), by.stage.then_some(measure));
            let (sum, of) = sums.entry(key).or_default();
            sum.add(cell);
            *of = Some(series);
        }
    }
    let groups = sums.into_iter().map(|((dp_rank, peer, stage), (sum, series))| Group {
        dp_rank,
        address: series.filter(|_| by.peer).and_then(|series| copied.addresses.get(series)).cloned(),
        peer,
        stage: stage.and_then(name),
        figures: figures(&sum),
    });
    Report { covered: copied.covered, groups: groups.collect(), causes: causes::causes(copied) }
}

/// A stage's name.
pub(super) fn name(stage: usize) -> Option<&'static str> {
    Stages::default().named().get(stage).map(|(name, _)| *name)
}

fn figures(sum: &Sum) -> Figures {
    Figures {
        count: sum.count(),
        p50: sum.quantile(0.5),
        p90: sum.quantile(0.9),
        p99: sum.quantile(0.99),
        max: sum.max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Latency;
    use crate::model::ReadFacts;

    fn latency() -> Latency {
        let latency = Latency::new();
        for (rank, peer, ms) in [(8, "p0", 5), (8, "p1", 80), (9, "p0", 7)] {
            let series = Series { dp_rank: DpRank(rank), peer: Some(EngineId::new(peer)) };
            let stages = Stages {
                queued: Some(Duration::from_millis(1)),
                wire: Some(Duration::from_millis(ms)),
                ..Stages::default()
            };
            for _ in 0..4 {
                let read = ReadFacts { address: Some(Endpoint::new("host", 5600)), ..ReadFacts::default() };
                latency.landed(&series, &read, &stages, 1 << 20);
            }
        }
        latency
    }

    fn groups(by: (bool, bool, bool)) -> Vec<Group> {
        let (rank, peer, stage) = by;
        latency().report(&Query { window: Duration::from_secs(60), by: By { rank, peer, stage } }).groups
    }

    #[test]
    fn groups_are_made_by_any_subset() {
        let counts = |by| groups(by).iter().map(|group| group.figures.count).collect::<Vec<_>>();
        assert_eq!(counts((false, false, false)), [12]);
        assert_eq!(counts((true, false, false)), [8, 4]);
        assert_eq!(counts((false, true, false)), [8, 4]);
        assert_eq!(counts((false, false, true)), [12, 12], "queued and wire");
        assert_eq!(counts((true, true, true)), [4; 6]);
        let whole = groups((false, true, false));
        assert_eq!(whole[1].figures.max, 81_000, "the whole is the sum of its stages");
        let wire = &groups((false, true, true))[3];
        assert_eq!((wire.stage, wire.figures.p50, wire.figures.max), (Some("wire"), 80_000, 80_000));
        assert_eq!(wire.peer, Some(Some(EngineId::new("p1"))));
        assert_eq!(wire.address, Some(Endpoint::new("host", 5600)));
    }
}

//! Histograms in sub-windows that rotate.
//!
//! Memory is bounded: at most [`SERIES`] series (and one `other` per rank) in [`KEPT`] sub-windows; a histogram has 2 digits and grows with
//! what it holds: 0.5 KB for microseconds, 2.5 KB for 40 ms, 5 KB at most. A new series takes the place of the least recently used
//! one, which folds into its rank's `other`; while all are in use, the new one itself counts there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use side_channel::Endpoint;

use super::{MEASURES, Series};

/// What one sub-window spans.
pub const SUB_WINDOW: Duration = Duration::from_secs(15);
/// The longest window that can be asked for.
pub const MAX_WINDOW: Duration = Duration::from_secs(120);
/// Sub-windows kept: those of the longest window and the one that is being filled.
const KEPT: u64 = 9;
/// Series kept apart.
const SERIES: usize = 128;
/// Longer times (µs) and larger sizes (KiB) count as this much in percentiles: 67 s, 64 GiB. The maximum is exact.
const HIGHEST: u64 = (1 << 26) - 1;
/// Decimal digits that a percentile is good for.
const DIGITS: u8 = 2;

/// One measure's values.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    histogram: Histogram<u16>,
    max: u64,
}

/// One series' values, by measure.
pub(super) type Cells = [Option<Cell>; MEASURES];

#[derive(Clone, Debug, Default)]
struct SubWindow {
    index: u64,
    cells: BTreeMap<Series, Cells>,
}

#[derive(Debug)]
struct Known {
    used: Duration,
    address: Option<Endpoint>,
}

/// All sub-windows, and which series are kept apart.
#[derive(Debug, Default)]
pub(super) struct Windows {
    kept: Vec<Arc<SubWindow>>,
    series: BTreeMap<Series, Known>,
}

/// What a question works on.
#[derive(Debug, Default)]
pub(super) struct Copied {
    windows: Vec<Arc<SubWindow>>,
    /// Where peers were reached last.
    pub(super) addresses: BTreeMap<Series, Endpoint>,
    /// How far back the values go.
    pub(super) covered: Duration,
}

impl Cell {
    fn add(slot: &mut Option<Self>, value: u64) {
        let Some(cell) = Self::of(slot) else { return };
        cell.max = cell.max.max(value);
        // It grows as far as HIGHEST.
        if cell.histogram.record(value.min(HIGHEST)).is_err() {
            tracing::debug!(value, "a latency could not be counted");
        }
    }

    fn of(slot: &mut Option<Self>) -> Option<&mut Self> {
        if slot.is_none() {
            *slot = Histogram::new(DIGITS).ok().map(|histogram| Self { histogram, max: 0 });
        }
        slot.as_mut()
    }

    fn merge(slot: &mut Option<Self>, other: &Self) {
        let Some(cell) = Self::of(slot) else { return };
        cell.max = cell.max.max(other.max);
        // Both hold values up to HIGHEST in as many digits, so nothing can be too large.
        if cell.histogram.add(&other.histogram).is_err() {
            tracing::debug!("a latency histogram could not be merged");
        }
    }
}

impl Windows {
    /// Counts values of one series. `now` counts from any fixed moment.
    pub(super) fn observe(
        &mut self,
        series: &Series,
        address: Option<&Endpoint>,
        values: &[(usize, u64)],
        now: Duration,
    ) {
        self.rotate(now);
        let series = self.admit(series, now);
        let known = self.series.entry(series.clone()).or_insert(Known { used: now, address: None });
        known.used = now;
        if address.is_some() && series.peer.is_some() {
            known.address = address.cloned();
        }
        let index = index(now);
        if self.kept.last().is_none_or(|newest| newest.index < index) {
            self.kept.push(Arc::new(SubWindow { index, ..SubWindow::default() }));
        }
        let Some(newest) = self.kept.last_mut() else { return };
        let cells = Arc::make_mut(newest).cells.entry(series).or_default();
        for (measure, value) in values {
            if let Some(slot) = cells.get_mut(*measure) {
                Cell::add(slot, *value);
            }
        }
    }

    /// What the last `window` holds. The newest sub-window is shared until the next value comes, so copying costs only that one's copy.
    pub(super) fn copy(&mut self, window: Duration, now: Duration) -> Copied {
        self.rotate(now);
        let oldest = index(now.saturating_sub(window));
        let windows: Vec<_> = self.kept.iter().filter(|kept| kept.index >= oldest).cloned().collect();
        let addresses = self.series.iter().filter_map(|(series, known)| Some((series.clone(), known.address.clone()?)));
        let begun = SUB_WINDOW.saturating_mul(u32::try_from(oldest).unwrap_or(u32::MAX));
        Copied { windows, addresses: addresses.collect(), covered: now.saturating_sub(begun) }
    }

    fn rotate(&mut self, now: Duration) {
        let index = index(now);
        let before = self.kept.len();
        self.kept.retain(|kept| kept.index.saturating_add(KEPT) > index);
        if self.kept.len() < before {
            let kept = &self.kept;
            self.series.retain(|series, _| kept.iter().any(|window| window.cells.contains_key(series)));
        }
    }

    /// As which series to count: itself if there is room for it, or room is made by folding one that is not in use.
    fn admit(&mut self, series: &Series, now: Duration) -> Series {
        let apart = self.series.iter().filter(|(series, _)| series.peer.is_some());
        if self.series.contains_key(series) || apart.clone().count() < SERIES {
            return series.clone();
        }
        let oldest = apart.min_by_key(|(_, known)| known.used);
        match oldest.filter(|(_, known)| now.saturating_sub(known.used) >= SUB_WINDOW) {
            Some((oldest, _)) => {
                let oldest = oldest.clone();
                self.fold(&oldest, now);
                series.clone()
            }
            None => Series { dp_rank: series.dp_rank, peer: None },
        }
    }

    fn fold(&mut self, oldest: &Series, now: Duration) {
        let other = Series { dp_rank: oldest.dp_rank, peer: None };
        self.series.remove(oldest);
        self.series.entry(other.clone()).or_insert(Known { used: now, address: None });
        for window in &mut self.kept {
            if !window.cells.contains_key(oldest) {
                continue;
            }
            let window = Arc::make_mut(window);
            let Some(folded) = window.cells.remove(oldest) else { continue };
            let into = window.cells.entry(other.clone()).or_default();
            for (slot, cell) in into.iter_mut().zip(folded) {
                if let Some(cell) = cell {
                    Cell::merge(slot, &cell);
                }
            }
        }
    }
}

impl Copied {
    /// Every cell, with its series and its measure.
    pub(super) fn cells(&self) -> impl Iterator<Item = (&Series, usize, &Cell)> {
        let series = self.windows.iter().flat_map(|window| window.cells.iter());
        series.flat_map(|(series, cells)| {
            let cells = cells.iter().enumerate();
            cells.filter_map(move |(measure, cell)| Some((series, measure, cell.as_ref()?)))
        })
    }
}

/// Values that were added up.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum {
    histogram: Option<Histogram<u64>>,
    max: u64,
}

impl Sum {
    /// Adds a cell's values.
    pub(super) fn add(&mut self, cell: &Cell) {
        self.max = self.max.max(cell.max);
        if self.histogram.is_none() {
            self.histogram = Histogram::new(DIGITS).ok();
        }
        let Some(histogram) = &mut self.histogram else { return };
        for step in cell.histogram.iter_recorded() {
            if histogram.record_n(step.value_iterated_to(), step.count_at_value().into()).is_err() {
                tracing::debug!("latencies could not be added up");
            }
        }
    }

    /// Adds another sum's values.
    pub(super) fn merge(&mut self, other: &Self) {
        self.max = self.max.max(other.max);
        match (&mut self.histogram, &other.histogram) {
            (_, None) => {}
            (None, Some(theirs)) => self.histogram = Some(theirs.clone()),
            (Some(ours), Some(theirs)) => {
                if ours.add(theirs).is_err() {
                    tracing::debug!("latency histograms could not be added up");
                }
            }
        }
    }

    /// These values but those of a part of them. Its maximum is that of the whole.
    pub(super) fn without(&self, part: &Self) -> Self {
        let mut rest = self.clone();
        if let (Some(rest), Some(part)) = (&mut rest.histogram, &part.histogram)
            && rest.subtract(part).is_err()
        {
            tracing::debug!("a latency histogram is no part of the other");
        }
        rest
    }

    /// How many values.
    pub(super) fn count(&self) -> u64 {
        self.histogram.as_ref().map_or(0, Histogram::len)
    }

    /// The largest value.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// The value that this share of all does not exceed.
    pub(super) fn quantile(&self, share: f64) -> u64 {
        self.histogram.as_ref().map_or(0, |histogram| histogram.value_at_quantile(share)).min(self.max)
    }
}

fn index(now: Duration) -> u64 {
    now.as_secs() / SUB_WINDOW.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv::ids::{DpRank, EngineId};

    fn series(peer: &str) -> Series {
        Series { dp_rank: DpRank(8), peer: Some(EngineId::new(peer)) }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn sum(copied: &Copied, measure: usize) -> Sum {
        let mut sum = Sum::default();
        copied.cells().filter(|(_, of, _)| *of == measure).for_each(|(_, _, cell)| sum.add(cell));
        sum
    }

    #[test]
    fn a_value_leaves_with_its_sub_window() {
        let mut windows = Windows::default();
        windows.observe(&series("a"), None, &[(3, 41_000)], at(5));
        windows.observe(&series("a"), None, &[(3, 6_000)], at(70));
        let all = windows.copy(MAX_WINDOW, at(80));
        assert_eq!((sum(&all, 3).count(), sum(&all, 3).max()), (2, 41_000));
        let last = windows.copy(at(60), at(80));
        assert_eq!((sum(&last, 3).count(), sum(&last, 3).max()), (1, 6_000));
        assert!(last.covered >= at(60) && last.covered <= at(75), "{:?}", last.covered);
        assert_eq!(sum(&windows.copy(MAX_WINDOW, at(300)), 3).count(), 0);
        assert!(windows.series.is_empty() && windows.kept.is_empty(), "nothing is kept of what has left");
    }

    #[test]
    fn percentiles_are_good_for_two_digits_and_the_maximum_is_exact() {
        let mut windows = Windows::default();
        for value in 1..=1000 {
            windows.observe(&series("a"), None, &[(3, value * 100)], at(1));
        }
        windows.observe(&series("a"), None, &[(3, 100_000_000)], at(1));
        let sum = sum(&windows.copy(at(10), at(2)), 3);
        let near = |quantile: f64, wanted: u64| sum.quantile(quantile).abs_diff(wanted) * 100 <= wanted;
        assert!(near(0.5, 50_000) && near(0.9, 90_000) && near(0.99, 99_000), "{}", sum.quantile(0.5));
        assert_eq!(sum.max(), 100_000_000);
    }

    #[test]
    fn the_worst_of_everything_stays_within_64_mib() {
        let mut windows = Windows::default();
        let all: Vec<(usize, u64)> = (0..MEASURES).map(|measure| (measure, u64::MAX)).collect();
        for second in (0..600).step_by(5) {
            for peer in 0..2 * SERIES {
                windows.observe(&series(&format!("peer-{peer:04}")), None, &all, at(second));
            }
        }
        let copied = windows.copy(MAX_WINDOW, at(600));
        let bytes: usize = copied.cells().map(|(_, _, cell)| cell.histogram.distinct_values() * 2).sum();
        assert!(bytes > 1 << 20 && bytes < 64 << 20, "{bytes}");
    }

    #[test]
    fn many_peers_fold_into_other_and_nothing_is_lost() {
        let mut windows = Windows::default();
        let many = 3 * SERIES;
        for peer in 0..many {
            windows.observe(&series("busy"), None, &[(0, 7)], at(30));
            windows.observe(&series(&format!("peer-{peer:04}")), None, &[(0, 1)], at(30));
        }
        let copied = windows.copy(at(10), at(31));
        let names: std::collections::BTreeSet<_> = copied.cells().map(|(series, ..)| series.clone()).collect();
        assert_eq!(names.len(), SERIES + 1);
        assert!(names.contains(&series("busy")), "whoever is used stays");
        assert!(names.contains(&Series { dp_rank: DpRank(8), peer: None }));
        assert_eq!(sum(&copied, 0).count(), 2 * u64::try_from(many).unwrap());
        // Whoever is not in use any more makes room, and its values stay, in `other`.
        windows.observe(&series("busy"), None, &[(0, 7)], at(50));
        windows.observe(&series("late"), None, &[(0, 1)], at(50));
        let copied = windows.copy(MAX_WINDOW, at(51));
        assert!(copied.cells().any(|(known, ..)| *known == series("late")));
        assert!(!copied.cells().any(|(known, ..)| *known == series("peer-0000")));
        assert_eq!(sum(&copied, 0).count(), 2 * u64::try_from(many).unwrap() + 2);
    }
}

//! The last requests with their timelines, for `/v1/requests`: a bounded ring, one short lock per request at its end.

mod shown;
mod web;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::headers::Path;
use crate::metrics::Outcome;
use crate::trail::Trail;

pub(crate) use web::routes;

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) trail: Trail,
    pub(crate) outcome: Outcome,
    /// From its arrival to its end.
    pub(crate) took: Duration,
}

/// Which records to list.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) outcome: Option<Outcome>,
    pub(crate) path: Option<Path>,
    /// The slowest first instead of the newest.
    pub(crate) slowest: bool,
    pub(crate) at_most: usize,
}

/// The ring.
#[derive(Debug)]
pub(crate) struct Records {
    keep: usize,
    ring: Mutex<VecDeque<Arc<Record>>>,
}

impl Records {
    /// A ring of `keep` records; its memory is taken as it fills.
    pub(crate) fn new(keep: usize) -> Self {
        Self { keep, ring: Mutex::default() }
    }

    /// Keeps a record in the place of the oldest.
    pub(crate) fn keep(&self, record: Record) {
        if self.keep == 0 {
            return;
        }
        let record = Arc::new(record);
        let mut ring = self.ring.lock();
        let oldest = if ring.len() >= self.keep { ring.pop_front() } else { None };
        ring.push_back(record);
        drop(ring);
        // Freed outside of the lock.
        drop(oldest);
    }

    /// The newest record of this id: the router's, a client's, or that by which engines and sidecars know an attempt.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Record>> {
        let ring = self.ring.lock();
        let newest = || ring.iter().rev();
        let ours = newest().find(|record| *record.trail.id == *id);
        let theirs = || newest().find(|record| record.trail.client_id.as_deref() == Some(id));
        ours.or_else(theirs).or_else(|| newest().find(|record| record.trail.has_attempt(id))).cloned()
    }

    /// The records that a filter lets through, in its order.
    pub(crate) fn list(&self, filter: &Filter) -> Vec<Arc<Record>> {
        let wanted = |record: &&Arc<Record>| {
            filter.outcome.is_none_or(|outcome| record.outcome == outcome)
                && filter.path.is_none_or(|path| record.trail.path == path)
        };
        let at_most = if filter.slowest { usize::MAX } else { filter.at_most };
        let mut found: Vec<_> = self.ring.lock().iter().rev().filter(wanted).take(at_most).cloned().collect();
        if filter.slowest {
            found.sort_by_key(|record| std::cmp::Reverse(record.took));
            found.truncate(filter.at_most);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, client: Option<&str>, ms: u64, outcome: Outcome) -> Record {
        let trail = Trail::new(id.into(), client.map(Into::into), "/v1/completions");
        Record { trail, outcome, took: Duration::from_millis(ms) }
    }

    fn ids(found: &[Arc<Record>]) -> Vec<&str> {
        found.iter().map(|record| &*record.trail.id).collect()
    }

    #[tokio::test]
    async fn the_ring_forgets_the_oldest_and_finds_by_either_id() {
        let records = Records::new(3);
        for (n, client) in [(1, "a"), (2, "b"), (3, "b"), (4, "r-2")] {
            records.keep(record(&format!("r-{n}"), Some(client), n, Outcome::Ok));
        }
        assert!(records.find("r-1").is_none() && records.find("a").is_none());
        let found = |id: &str| records.find(id).unwrap().trail.id.clone();
        assert_eq!((found("b"), found("r-2")), ("r-3".into(), "r-2".into()), "our own ids come first");
    }

    #[tokio::test]
    async fn lists_are_newest_or_slowest_first_and_bounded() {
        let records = Records::new(8);
        for (id, ms, outcome) in [("r-1", 5, Outcome::Ok), ("r-2", 9, Outcome::Failed), ("r-3", 1, Outcome::Ok)] {
            records.keep(record(id, None, ms, outcome));
        }
        let of = |filter: Filter| ids(&records.list(&filter)).into_iter().map(str::to_owned).collect::<Vec<_>>();
        let all = Filter { at_most: 2, ..Filter::default() };
        assert_eq!(of(all), ["r-3", "r-2"]);
        assert_eq!(of(Filter { slowest: true, ..all }), ["r-2", "r-1"]);
        assert_eq!(of(Filter { slowest: true, outcome: Some(Outcome::Ok), ..all }), ["r-1", "r-3"]);
        assert_eq!(of(Filter { path: Some(Path::Pd), ..all }), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_ring_of_no_records_keeps_none() {
        let records = Records::new(0);
        records.keep(record("r-1", None, 1, Outcome::Ok));
        assert!(records.find("r-1").is_none());
    }
}

//! Which peer or rank makes a stage slow: its median against the median of all others.
//!
//! Handshake and wire are blamed on the peer; queued, post and verify on the rank whose staging, agent and disk they wait for.

use std::collections::BTreeMap;

use kv::ids::{DpRank, EngineId};
use side_channel::Endpoint;

use super::window::{Copied, Sum};
use super::{BEFORE_RECEIPT, Series, query, words};

/// Fewer transfers than these say nothing.
const ENOUGH: u64 = 3;
/// How many times the others' median is slow.
const TIMES: u64 = 2;
/// Differences below this are not worth a word. Microseconds.
const WORTH_A_WORD: u64 = 1_000;

/// Whom a slow stage is blamed on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A remote engine.
    Peer(EngineId),
    /// A rank of this pod (global).
    Rank(DpRank),
}

/// One slow stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Who.
    pub subject: Subject,
    /// Where a peer's side channel is.
    pub address: Option<Endpoint>,
    /// Which stage.
    pub stage: &'static str,
    /// The subject's median, in microseconds.
    pub p50: u64,
    /// Everybody else's.
    pub others_p50: u64,
    /// In words.
    pub text: String,
}

/// Everything that stands out, the largest difference first.
pub(super) fn causes(copied: &Copied) -> Vec<Cause> {
    let mut found = Vec::new();
    for stage in 0..BEFORE_RECEIPT {
        let Some(name) = query::name(stage) else { continue };
        let subject = |series: &Series| match name {
            "handshake" | "wire" => series.peer.clone().map(Subject::Peer),
            _ => Some(Subject::Rank(series.dp_rank)),
        };
        let mut sums: BTreeMap<Option<Subject>, Sum> = BTreeMap::new();
        for (series, _, cell) in copied.cells().filter(|(_, measure, _)| *measure == stage) {
            sums.entry(subject(series)).or_default().add(cell);
        }
        let mut all = Sum::default();
        sums.values().for_each(|sum| all.merge(sum));
        for (one, own) in sums {
            let Some(one) = one else { continue };
            let others = all.without(&own);
            let (p50, others_p50) = (own.quantile(0.5), others.quantile(0.5));
            let slow = p50 >= others_p50.saturating_mul(TIMES) && p50 >= others_p50.saturating_add(WORTH_A_WORD);
            if slow && own.count() >= ENOUGH && others.count() >= ENOUGH {
                found.push(cause(one, copied, name, (p50, own.count()), (others_p50, others.count())));
            }
        }
    }
    found.sort_by_key(|cause| std::cmp::Reverse(cause.p50.saturating_sub(cause.others_p50)));
    found
}

fn cause(subject: Subject, copied: &Copied, stage: &'static str, own: (u64, u64), others: (u64, u64)) -> Cause {
    let address = match &subject {
        Subject::Peer(peer) => {
            let of = copied.addresses.iter().find(|(series, _)| series.peer.as_ref() == Some(peer));
            of.map(|(_, address)| address.clone())
        }
        Subject::Rank(_) => None,
    };
    let who = match (&subject, &address) {
        (Subject::Peer(peer), Some(address)) => format!("peer {peer} at {address}"),
        (Subject::Peer(peer), None) => format!("peer {peer}"),
        (Subject::Rank(rank), _) => format!("rank {rank}"),
    };
    let ((p50, count), (others_p50, others_count)) = (own, others);
    let text = format!(
        "{stage}: {} with {who} against {} with all others (medians of {count} and {others_count} transfers)",
        words(p50),
        words(others_p50)
    );
    Cause { subject, address, stage, p50, others_p50, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::{By, Latency, Query};
    use crate::model::Stages;
    use std::time::Duration;

    fn seen(transfers: &[(u16, &str, Stages)]) -> Vec<Cause> {
        let latency = Latency::new();
        for (rank, peer, stages) in transfers {
            let series = Series { dp_rank: DpRank(*rank), peer: Some(EngineId::new(*peer)) };
            for _ in 0..5 {
                latency.landed(&series, Some(&Endpoint::new("p", 5601)), stages, 1);
            }
        }
        let by = By { rank: true, peer: true, stage: true };
        latency.report(&Query { window: Duration::from_secs(60), by }).causes
    }

    fn stages(queued: u64, wire: u64) -> Stages {
        let ms = |ms| Some(Duration::from_millis(ms));
        Stages { queued: ms(queued), wire: ms(wire), ..Stages::default() }
    }

    #[test]
    fn a_slow_peer_is_named_with_its_stage() {
        let causes = seen(&[(0, "p0", stages(0, 80)), (0, "p1", stages(0, 5)), (1, "p1", stages(0, 6))]);
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert_eq!((&causes[0].subject, causes[0].stage), (&Subject::Peer(EngineId::new("p0")), "wire"));
        let text = "wire: 80 ms with peer p0 at p:5601 against 5.0 ms with all others (medians of 5 and 10 transfers)";
        assert_eq!(causes[0].text, text);
    }

    #[test]
    fn a_full_staging_is_the_rank_s_and_not_the_peer_s() {
        let causes = seen(&[(0, "p0", stages(900, 5)), (1, "p0", stages(0, 5)), (1, "p1", stages(0, 5))]);
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert_eq!((&causes[0].subject, causes[0].stage), (&Subject::Rank(DpRank(0)), "queued"));
    }

    #[test]
    fn equals_and_loners_are_not_blamed() {
        assert!(seen(&[(0, "p0", stages(0, 5)), (0, "p1", stages(0, 6))]).is_empty());
        assert!(seen(&[(0, "p0", stages(0, 500))]).is_empty(), "nobody to compare with");
    }
}

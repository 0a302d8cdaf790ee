//! Which peer or rank makes a stage slow: its median against the median of all others.
//!
//! Handshake and wire are blamed on the peer; queued and post on the rank whose staging and agent they wait for; of verify, the wait for
//! the source's digests on the peer and the rest, comparing and the receipt log, on the rank.

use std::collections::BTreeMap;

use kv::ids::{DpRank, EngineId};
use side_channel::Endpoint;

use super::window::{Copied, Sum};
use super::{AWAITED, BEFORE_RECEIPT, OWN_VERIFY, Series, TOTAL, query, words};

/// Fewer transfers than these say nothing.
const ENOUGH: u64 = 3;
/// How many times the others' median is slow.
const TIMES: u64 = 2;
/// Differences below this are not worth a word. Microseconds.
const WORTH_A_WORD: u64 = 1_000;
/// Nor are those below one part in so many of the whole time to the receipt.
const SHARE: u64 = 20;

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
    for (measure, name, whose) in blamed() {
        let sums = sums(copied, measure, whose);
        let mut all = Sum::default();
        sums.values().for_each(|sum| all.merge(sum));
        for (one, own) in sums {
            let Some(one) = one else { continue };
            let others = all.without(&own);
            let (p50, others_p50) = (own.quantile(0.5), others.quantile(0.5));
            let slow = p50 >= others_p50.saturating_mul(TIMES) && p50 >= others_p50.saturating_add(WORTH_A_WORD);
            let difference = p50.saturating_sub(others_p50);
            let matters = || {
                let whole = sums_of(copied, TOTAL, whose, &one).quantile(0.5);
                difference.saturating_mul(SHARE) >= whole
            };
            if slow && own.count() >= ENOUGH && others.count() >= ENOUGH && matters() {
                let verb = if measure == AWAITED { "waiting for the digests of" } else { "with" };
                found.push(cause(one, copied, (name, verb), (p50, own.count()), (others_p50, others.count())));
            }
        }
    }
    found.sort_by_key(|cause| std::cmp::Reverse(cause.p50.saturating_sub(cause.others_p50)));
    found
}

/// Who is blamed for a value of one series; none for peers that are not kept apart.
type Whose = fn(&Series) -> Option<Subject>;

/// What is compared: the measure, the stage that it is (of), and whose it is.
fn blamed() -> impl Iterator<Item = (usize, &'static str, Whose)> {
    let peer: Whose = |series| series.peer.clone().map(Subject::Peer);
    let rank: Whose = |series| Some(Subject::Rank(series.dp_rank));
    let stages = (0..BEFORE_RECEIPT).filter_map(|stage| Some((stage, query::name(stage)?)));
    stages.flat_map(move |(stage, name)| match name {
        "handshake" | "wire" => vec![(stage, name, peer)],
        "verify" => vec![(OWN_VERIFY, name, rank), (AWAITED, name, peer)],
        _ => vec![(stage, name, rank)],
    })
}

fn sums(copied: &Copied, measure: usize, whose: Whose) -> BTreeMap<Option<Subject>, Sum> {
    let mut sums: BTreeMap<Option<Subject>, Sum> = BTreeMap::new();
    for (series, _, cell) in copied.cells().filter(|(_, of, _)| *of == measure) {
        sums.entry(whose(series)).or_default().add(cell);
    }
    sums
}

fn sums_of(copied: &Copied, measure: usize, whose: Whose, subject: &Subject) -> Sum {
    sums(copied, measure, whose).remove(&Some(subject.clone())).unwrap_or_default()
}

fn cause(
    subject: Subject,
    copied: &Copied,
    (stage, verb): (&'static str, &str),
    own: (u64, u64),
    others: (u64, u64),
) -> Cause {
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
        "{stage}: {} {verb} {who} against {} with all others (medians of {count} and {others_count} transfers)",
        words(p50),
        words(others_p50)
    );
    Cause { subject, address, stage, p50, others_p50, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::{By, Latency, Query};
    use crate::model::{DigestFacts, ReadFacts, Stages};
    use std::time::Duration;

    fn seen(transfers: &[(u16, &str, Stages)]) -> Vec<Cause> {
        seen_after(Duration::ZERO, transfers)
    }

    /// The digests of peers whose name begins with s come so long after they were asked for.
    fn seen_after(source: Duration, transfers: &[(u16, &str, Stages)]) -> Vec<Cause> {
        let latency = Latency::new();
        for (rank, peer, stages) in transfers {
            let series = Series { dp_rank: DpRank(*rank), peer: Some(EngineId::new(*peer)) };
            for _ in 0..5 {
                let source = peer.starts_with('s').then_some(source);
                let digests = Some(DigestFacts { source, ..DigestFacts::default() });
                let read = ReadFacts { address: Some(Endpoint::new("p", 5601)), digests, ..ReadFacts::default() };
                latency.landed(&series, &read, stages, 1);
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
    fn late_digests_are_the_peer_s_and_a_slow_disk_the_rank_s() {
        let verifying = |ms| Stages { verify: Some(Duration::from_millis(ms)), ..stages(0, 50) };
        let transfers = [(0, "s0", verifying(300)), (1, "p1", verifying(2)), (0, "p2", verifying(2))];
        let causes = seen_after(Duration::from_millis(340), &transfers);
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert_eq!((&causes[0].subject, causes[0].stage), (&Subject::Peer(EngineId::new("s0")), "verify"));
        let text = "verify: 290 ms waiting for the digests of peer s0 at p:5601 against 0 µs with all others";
        assert!(causes[0].text.starts_with(text), "{}", causes[0].text);
        let transfers = [(0, "p0", verifying(300)), (1, "p0", verifying(2)), (1, "p1", verifying(2))];
        let causes = seen(&transfers);
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert_eq!((&causes[0].subject, causes[0].stage), (&Subject::Rank(DpRank(0)), "verify"));
    }

    #[test]
    fn what_hardly_matters_to_the_whole_is_not_named() {
        let causes = seen(&[(0, "p0", stages(8, 500)), (1, "p0", stages(0, 500)), (1, "p1", stages(0, 500))]);
        assert!(causes.is_empty(), "8 ms of half a second: {causes:?}");
    }

    #[test]
    fn equals_and_loners_are_not_blamed() {
        assert!(seen(&[(0, "p0", stages(0, 5)), (0, "p1", stages(0, 6))]).is_empty());
        assert!(seen(&[(0, "p0", stages(0, 500))]).is_empty(), "nobody to compare with");
    }
}

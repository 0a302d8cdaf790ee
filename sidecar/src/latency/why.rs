//! Why one transfer was slow: the stage that took most against what is usual for its peer, in words.

use std::collections::BTreeMap;
use std::time::Duration;

use kv::ids::EngineId;
use tokio::time::Instant;

use super::window::{Copied, Sum};
use super::{BEFORE_RECEIPT, MEASURES, SIZE, micros, words};
use crate::model::{Contact, ReadFacts, Span, TransferSnapshot};
use crate::transport::Transport;

/// A median of fewer transfers says nothing.
const ENOUGH: u64 = 3;
/// A stage stands out when it took this many tenths of what is usual …
const TENTHS: u64 = 15;
/// … and this much more. Microseconds.
const WORTH_A_WORD: u64 = 200;

/// Medians by measure, where there are enough transfers.
type Medians = [Option<u64>; MEASURES];

/// What is usual: the medians of each peer's transfers, over the longest window.
#[derive(Clone, Debug, Default)]
pub struct Usual {
    peers: BTreeMap<EngineId, (Medians, Medians)>,
    all: Medians,
}

/// Why a transfer took as long as it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The stage that took most against what is usual.
    pub stage: &'static str,
    /// How long it took, or has taken so far.
    pub took: Duration,
    /// The median of this stage with the same peer.
    pub peer_median: Option<Duration>,
    /// The median of this stage with all other peers.
    pub others_median: Option<Duration>,
    /// In words.
    pub text: String,
}

impl Usual {
    pub(super) fn of(copied: &Copied) -> Self {
        let mut sums: BTreeMap<Option<EngineId>, [Sum; MEASURES]> = BTreeMap::new();
        for (series, measure, cell) in copied.cells() {
            if let Some(sum) = sums.entry(series.peer.clone()).or_default().get_mut(measure) {
                sum.add(cell);
            }
        }
        let mut all: [Sum; MEASURES] = Default::default();
        for own in sums.values() {
            all.iter_mut().zip(own).for_each(|(all, own)| all.merge(own));
        }
        let mut usual = Self { all: all.each_ref().map(median), ..Self::default() };
        for (peer, own) in sums {
            let Some(peer) = peer else { continue };
            let mut others = [None; MEASURES];
            for (slot, (all, own)) in others.iter_mut().zip(all.iter().zip(&own)) {
                *slot = median(&all.without(own));
            }
            usual.peers.insert(peer, (own.each_ref().map(median), others));
        }
        usual
    }

    /// The medians of a peer, and those of all others.
    fn with(&self, peer: &EngineId) -> (Medians, Medians) {
        self.peers.get(peer).copied().unwrap_or(([None; MEASURES], self.all))
    }
}

fn median(sum: &Sum) -> Option<u64> {
    (sum.count() >= ENOUGH).then(|| sum.quantile(0.5))
}

/// One stage against what is usual. Microseconds.
#[derive(Clone, Copy, Debug)]
struct Compared {
    span: Span,
    took: u64,
    peer: Option<u64>,
    others: Option<u64>,
}

impl Compared {
    fn baseline(&self) -> Option<u64> {
        self.peer.into_iter().chain(self.others).min()
    }

    fn excess(&self) -> u64 {
        self.took.saturating_sub(self.baseline().unwrap_or(0))
    }

    fn stands_out(&self) -> bool {
        self.excess() >= WORTH_A_WORD
            && self.took.saturating_mul(10) >= self.baseline().unwrap_or(0).saturating_mul(TENTHS)
    }
}

/// Why this transfer took as long as it did, seen at `now`; none while nothing has taken any time.
pub fn why(transfer: &TransferSnapshot, usual: &Usual, transport: Option<&Transport>, now: Instant) -> Option<Why> {
    let (peer, others) = usual.with(&transfer.source_engine);
    let stages = transfer.stages.named();
    let index = |span: &Span| stages.iter().position(|(name, _)| *name == span.stage);
    let compared = transfer.timeline(now).into_iter().filter_map(|span| {
        let stage = index(&span).filter(|stage| *stage < BEFORE_RECEIPT)?;
        let of = |medians: &Medians| medians.get(stage).copied().flatten();
        Some(Compared { span, took: micros(span.duration), peer: of(&peer), others: of(&others) })
    });
    let compared: Vec<Compared> = compared.collect();
    let unusual = compared.iter().filter(|one| one.stands_out()).max_by_key(|one| one.excess());
    let longest = compared.iter().max_by_key(|one| one.took)?;
    let one = unusual.unwrap_or(longest);
    let head = match unusual {
        Some(one) => against(one),
        None => within_the_usual(one),
    };
    let mut text = vec![head];
    if one.span.running {
        text.push("still going on".to_owned());
    }
    if let Some(failure) = &transfer.failure {
        text.push(format!("it failed then ({})", failure.code.as_str()));
    }
    text.extend(facts(one, transfer, peer.get(SIZE).copied().flatten(), transport));
    Some(Why {
        stage: one.span.stage,
        took: one.span.duration,
        peer_median: one.peer.map(Duration::from_micros),
        others_median: one.others.map(Duration::from_micros),
        text: text.join("; "),
    })
}

fn against(one: &Compared) -> String {
    let (stage, took) = (one.span.stage, words(one.took));
    match (one.peer, one.others) {
        (Some(peer), Some(others)) if peer >= others.saturating_mul(2).max(others.saturating_add(WORTH_A_WORD)) => {
            format!(
                "{stage}: {took} against {} with other peers (this peer's median is {}: it is slow, not only this transfer)",
                words(others),
                words(peer)
            )
        }
        (Some(peer), _) => format!("{stage}: {took} against {}", words(peer)),
        (None, Some(others)) => {
            format!("{stage}: {took} against {} with other peers (too few transfers from this one)", words(others))
        }
        (None, None) => format!("{stage}: {took}, and too few transfers to say what is usual"),
    }
}

fn within_the_usual(one: &Compared) -> String {
    let (stage, took) = (one.span.stage, words(one.took));
    match one.baseline() {
        Some(usual) => format!("{stage}: {took} took most, which is usual ({})", words(usual)),
        None => format!("{stage}: {took} took most, and too few transfers to say what is usual"),
    }
}

/// What is known that explains this stage.
fn facts(
    one: &Compared,
    transfer: &TransferSnapshot,
    usual_size: Option<u64>,
    transport: Option<&Transport>,
) -> Vec<String> {
    let read = &*transfer.read;
    match one.span.stage {
        "queued" => queued(read),
        "handshake" => handshake(read, one.span.running || transfer.failure.is_some()),
        "post" => post(one.took, transfer),
        "wire" => wire(transfer, usual_size, transport),
        "verify" => verify(read),
        _ => Vec::new(),
    }
}

fn verify(read: &ReadFacts) -> Vec<String> {
    let record = "the receipt was put on record in that time: look at the disk of --receipt-log".to_owned();
    let Some(digests) = read.digests else { return vec![record] };
    let source = match digests.source {
        Some(source) => {
            format!("the prefill pod's sidecar gave its digests {} after it was asked", words(micros(source)))
        }
        None => "the prefill pod's sidecar has not given its digests".to_owned(),
    };
    let mut facts =
        vec![format!("{} blocks ({}) compared with the source", digests.blocks, size(digests.bytes)), source];
    facts.extend(digests.compared.map(|took| format!("comparing took {}", words(micros(took)))));
    facts
}

fn queued(read: &ReadFacts) -> Vec<String> {
    let Some(behind) = read.queued_behind else {
        return vec!["staging was free: the rank's task was busy".to_owned()];
    };
    let (needed, free, capacity, ahead) = (behind.needed, behind.free, behind.capacity, behind.ahead);
    vec![
        format!("staging was full ({needed} slots wanted, {free} of {capacity} free, {ahead} transfers ahead)"),
        "raise --staging-bytes, or see whether decode collects in time".to_owned(),
    ]
}

fn handshake(read: &ReadFacts, unanswered: bool) -> Vec<String> {
    let at = read.address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default();
    vec![match read.contact {
        Contact::Asked if unanswered => {
            format!("first contact with this peer: its side channel{at} was asked and gave no usable answer")
        }
        Contact::Asked => format!("first contact with this peer: its side channel{at} was asked and its agent loaded"),
        Contact::Waited => format!("waited for the side channel{at}, which another transfer had asked"),
        Contact::Known => "the peer was known: the rank's task was busy".to_owned(),
    }]
}

fn post(took: u64, transfer: &TransferSnapshot) -> Vec<String> {
    let Some(shard) = transfer.read.shards.iter().max_by_key(|shard| shard.start) else { return Vec::new() };
    let planned = micros(shard.planned);
    vec![if planned.saturating_mul(2) >= took {
        format!("making {} descriptors took {}", shard.descriptors, words(planned))
    } else {
        "the rank's agent was busy with other reads".to_owned()
    }]
}

fn wire(transfer: &TransferSnapshot, usual_size: Option<u64>, transport: Option<&Transport>) -> Vec<String> {
    let (read, mut facts) = (&*transfer.read, Vec::new());
    let (descriptors, pieces, bytes) = (read.descriptors(), read.pieces(), read.bytes());
    if let Some(each) = bytes.checked_div(pieces) {
        facts.push(if descriptors < pieces {
            format!("{descriptors} descriptors, merged from {pieces} of {}", size(each))
        } else if transfer.blocks > 1 {
            format!("{descriptors} descriptors of {} not merged", size(each))
        } else {
            format!("{descriptors} descriptors of {} for its one block", size(each))
        });
    }
    if let Some(usual) = usual_size.filter(|usual| *usual > 0 && bytes / 1024 >= usual.saturating_mul(2)) {
        facts.push(format!("{}, {} times as much as usual from this peer", size(bytes), bytes / 1024 / usual));
    }
    let by_post = |shard: &crate::model::ShardRead| shard.post_call.saturating_mul(2) >= shard.wire;
    if read.slowest().is_some_and(by_post) && bytes > 0 {
        facts.push("moved inside NIXL's post call, as cma does and tcp does not".to_owned());
    }
    facts.extend(transport.map(ToString::to_string));
    facts
}

/// Bytes as people say them.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

#[cfg(test)]
mod tests;

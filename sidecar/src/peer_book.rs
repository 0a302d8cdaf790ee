//! What is known of the remote engines that the ranks read from: for `/v1/peers`, not for the data path.

use std::collections::BTreeMap;
use std::time::Duration;

use kv::ids::{DpRank, EngineId};
use nixl::AgentName;
use parking_lot::Mutex;
use side_channel::Endpoint;
use tokio::time::Instant;

use crate::model::{Code, TransferError};
use crate::peers::Peer;
use crate::problem::with_causes;

/// The most entries kept; the least recently used goes first.
const KEEP: usize = 1024;

/// What went wrong last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// The stable code.
    pub code: Code,
    /// In words, causes included.
    pub detail: String,
    /// When.
    pub at: Instant,
}

/// One remote engine as one rank knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    /// The rank that reads from it (global).
    pub dp_rank: DpRank,
    /// The engine.
    pub engine: EngineId,
    /// Its side channel.
    pub address: Option<Endpoint>,
    /// Its agents, one per TP shard, as of the last good handshake.
    pub agents: Vec<AgentName>,
    /// When the last good handshake ended.
    pub shaken: Option<Instant>,
    /// How long it took.
    pub handshake_took: Option<Duration>,
    /// Good handshakes.
    pub handshakes: u64,
    /// Handshakes that failed.
    pub handshakes_failed: u64,
    /// Transfers that landed.
    pub transfers: u64,
    /// Transfers that failed, for whatever reason.
    pub transfers_failed: u64,
    /// Bytes landed.
    pub bytes: u64,
    /// What went wrong last.
    pub last_error: Option<LastError>,
    /// When it was last heard of.
    pub used: Instant,
}

/// The book that all ranks write. Bounded.
#[derive(Debug, Default)]
pub struct PeerBook(Mutex<BTreeMap<(DpRank, EngineId), KnownPeer>>);

impl PeerBook {
    /// Every entry, by rank and engine id.
    pub fn list(&self) -> Vec<KnownPeer> {
        self.0.lock().values().cloned().collect()
    }

    /// A handshake has ended.
    pub(crate) fn answered(
        &self,
        rank: DpRank,
        engine: &EngineId,
        endpoint: &Endpoint,
        took: Duration,
        answer: Result<&Peer, &TransferError>,
    ) {
        self.change(rank, engine, |peer| {
            peer.address = Some(endpoint.clone());
            match answer {
                Ok(found) => {
                    peer.agents = found.shards.iter().map(|shard| shard.agent.clone()).collect();
                    peer.shaken = Some(peer.used);
                    peer.handshake_took = Some(took);
                    peer.handshakes = peer.handshakes.saturating_add(1);
                }
                Err(error) => {
                    peer.handshakes_failed = peer.handshakes_failed.saturating_add(1);
                    peer.note(error);
                }
            }
        });
    }

    /// A transfer from it has landed.
    pub(crate) fn landed(&self, rank: DpRank, engine: &EngineId, bytes: u64) {
        self.change(rank, engine, |peer| {
            peer.transfers = peer.transfers.saturating_add(1);
            peer.bytes = peer.bytes.saturating_add(bytes);
        });
    }

    /// A transfer from it has failed.
    pub(crate) fn transfer_failed(&self, rank: DpRank, engine: &EngineId, error: &TransferError) {
        self.change(rank, engine, |peer| {
            peer.transfers_failed = peer.transfers_failed.saturating_add(1);
            peer.note(error);
        });
    }

    fn change(&self, rank: DpRank, engine: &EngineId, change: impl FnOnce(&mut KnownPeer)) {
        let (mut book, now) = (self.0.lock(), Instant::now());
        let peer = book.entry((rank, engine.clone())).or_insert_with(|| KnownPeer::new(rank, engine, now));
        peer.used = now;
        change(peer);
        if book.len() > KEEP {
            let oldest = book.iter().min_by_key(|(_, peer)| peer.used).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| book.remove(&oldest));
        }
    }
}

impl KnownPeer {
    fn new(dp_rank: DpRank, engine: &EngineId, used: Instant) -> Self {
        Self {
            dp_rank,
            engine: engine.clone(),
            address: None,
            agents: Vec::new(),
            shaken: None,
            handshake_took: None,
            handshakes: 0,
            handshakes_failed: 0,
            transfers: 0,
            transfers_failed: 0,
            bytes: 0,
            last_error: None,
            used,
        }
    }

    fn note(&mut self, error: &TransferError) {
        self.last_error = Some(LastError { code: error.code(), detail: with_causes(error), at: self.used });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_is_bounded_and_the_used_ones_stay() {
        let (book, rank) = (PeerBook::default(), DpRank(0));
        for number in 0..KEEP + 10 {
            book.landed(rank, &EngineId::new("used"), 1);
            book.landed(rank, &EngineId::new(format!("engine-{number}")), 1);
        }
        let kept = book.list();
        assert_eq!(kept.len(), KEEP);
        let used = kept.iter().find(|peer| peer.engine.as_str() == "used").unwrap();
        assert_eq!(used.transfers, u64::try_from(KEEP + 10).unwrap());
        book.transfer_failed(rank, &used.engine, &TransferError::Deadline);
        let failed = book.list().into_iter().find(|peer| peer.engine == used.engine).unwrap();
        assert_eq!((failed.transfers_failed, failed.last_error.unwrap().code), (1, Code::Deadline));
    }
}

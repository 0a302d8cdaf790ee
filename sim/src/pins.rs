//! Blocks that a prefill rank keeps for the decode rank that will read them: leases, heartbeats, done notifications.
//!
//! Source: `docs/vllm-nixl-protocol.md` §3.3, §3.4. A pin ends when every TP shard was told "done" by as many readers as the
//! notification says, or when its lease is over. Nobody is told about the latter, as in vLLM.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kv::ids::{BlockId, EngineRequestId, TpRank};
use tokio::time::Instant;

/// The pinned requests of one rank.
#[derive(Debug)]
pub struct Pins {
    lease: Duration,
    shards: u16,
    by_request: BTreeMap<EngineRequestId, Pin>,
    /// The latest requests whose lease ran out, oldest first: a notification for one of them is counted by vLLM.
    expired: VecDeque<EngineRequestId>,
}

#[derive(Debug)]
struct Pin {
    blocks: Vec<BlockId>,
    expires_at: Instant,
    /// Done notifications per TP shard.
    told: BTreeMap<TpRank, u32>,
    done: BTreeMap<TpRank, ()>,
}

/// What a done notification meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// All shards were told: these blocks are free.
    Free(Vec<BlockId>),
    /// More notifications have to come.
    Waiting,
    /// The lease was over already.
    AfterExpiry,
    /// Nobody knows this request.
    Unknown,
}

/// How many expired requests are remembered.
const REMEMBERED: usize = 1024;

impl Pins {
    /// No pins yet; `lease` counts from a request's finish.
    pub fn new(lease: Duration, shards: u16) -> Self {
        Self { lease, shards, by_request: BTreeMap::new(), expired: VecDeque::new() }
    }

    /// Keeps a finished prefill's blocks.
    pub fn pin(&mut self, request: EngineRequestId, blocks: Vec<BlockId>, now: Instant) {
        let expires_at = now + self.lease;
        self.by_request.insert(request, Pin { blocks, expires_at, told: BTreeMap::new(), done: BTreeMap::new() });
    }

    /// One reader of `shard` is done; `readers` is how many there are.
    pub fn done(&mut self, request: &EngineRequestId, shard: TpRank, readers: u32) -> Done {
        let Some(pin) = self.by_request.get_mut(request) else {
            let late = self.expired.contains(request);
            return if late { Done::AfterExpiry } else { Done::Unknown };
        };
        let told = pin.told.entry(shard).or_insert(0);
        *told += 1;
        if *told >= readers {
            pin.done.insert(shard, ());
        }
        if pin.done.len() < usize::from(self.shards) {
            return Done::Waiting;
        }
        self.by_request.remove(request).map_or(Done::Unknown, |pin| Done::Free(pin.blocks))
    }

    /// A decode rank still means to read: the lease lasts two thirds of its length from now, if that is longer.
    pub fn heartbeat(&mut self, request: &EngineRequestId, now: Instant) -> bool {
        let extended = now + self.lease * 2 / 3;
        self.by_request.get_mut(request).map(|pin| pin.expires_at = pin.expires_at.max(extended)).is_some()
    }

    /// Ends every lease that is over and returns the blocks of each.
    pub fn expire(&mut self, now: Instant) -> Vec<(EngineRequestId, Vec<BlockId>)> {
        let over = |pin: &Pin| pin.expires_at <= now;
        let ids: Vec<_> = self.by_request.iter().filter(|(_, pin)| over(pin)).map(|(id, _)| id.clone()).collect();
        let mut ended = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(pin) = self.by_request.remove(&id) {
                self.expired.push_back(id.clone());
                ended.push((id, pin.blocks));
            }
        }
        while self.expired.len() > REMEMBERED {
            self.expired.pop_front();
        }
        ended
    }

    /// When the next lease is over.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.by_request.values().map(|pin| pin.expires_at).min()
    }

    /// Whether anything is pinned.
    pub fn is_empty(&self) -> bool {
        self.by_request.is_empty()
    }

    /// How many requests are pinned.
    pub fn len(&self) -> usize {
        self.by_request.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> EngineRequestId {
        EngineRequestId::new(text)
    }

    #[tokio::test(start_paused = true)]
    async fn blocks_are_free_when_every_shard_was_told_by_every_reader() {
        let mut pins = Pins::new(Duration::from_secs(30), 2);
        pins.pin(id("a"), vec![BlockId(3)], Instant::now());
        assert_eq!(pins.done(&id("a"), TpRank(0), 2), Done::Waiting);
        assert_eq!(pins.done(&id("a"), TpRank(0), 2), Done::Waiting);
        assert_eq!(pins.done(&id("a"), TpRank(1), 1), Done::Free(vec![BlockId(3)]));
        assert_eq!(pins.done(&id("a"), TpRank(1), 1), Done::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_by_itself_and_a_heartbeat_moves_its_end() {
        let mut pins = Pins::new(Duration::from_secs(30), 1);
        let start = Instant::now();
        pins.pin(id("a"), vec![BlockId(3)], start);
        assert!(pins.heartbeat(&id("a"), start + Duration::from_secs(5)));
        assert_eq!(pins.next_expiry(), Some(start + Duration::from_secs(30)), "an early beat never shortens");
        assert!(pins.heartbeat(&id("a"), start + Duration::from_secs(25)));
        assert!(pins.expire(start + Duration::from_secs(44)).is_empty());
        assert_eq!(pins.expire(start + Duration::from_secs(45)), [(id("a"), vec![BlockId(3)])]);
        assert_eq!(pins.done(&id("a"), TpRank(0), 1), Done::AfterExpiry);
        assert!(!pins.heartbeat(&id("a"), start));
        assert!(pins.is_empty());
    }
}

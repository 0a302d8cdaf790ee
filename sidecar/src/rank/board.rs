//! What everyone may read of the pod's transfers, and which attempt stands for which. Only the ranks' tasks write transfers here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kv::ids::{AttemptId, DpRank, EngineId, EngineRequestId, TransferId};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use crate::model::{Landed, TransferFilter, TransferSnapshot};

/// The most prefills that are remembered longer than the transfers that moved them.
const PASSING: usize = 65_536;

/// One transfer to be read.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// As it stands.
    pub snapshot: TransferSnapshot,
    /// Its receipt, from the moment it was given.
    pub landed: Option<Arc<Landed>>,
}

/// What an attempt's key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttemptKey {
    /// The decode rank.
    pub dp_rank: DpRank,
    /// P's engine.
    pub engine: EngineId,
    /// P's request.
    pub request: EngineRequestId,
}

/// The board.
#[derive(Debug, Default)]
pub(crate) struct Board {
    shown: Mutex<BTreeMap<TransferId, watch::Receiver<Arc<Shown>>>>,
    attempts: Mutex<BTreeMap<AttemptId, (AttemptKey, TransferId)>>,
    sources: Mutex<Sources>,
}

type Source = (EngineId, EngineRequestId);

/// Prefills that are being moved or have been: once P is told, its blocks may be reused.
#[derive(Debug, Default)]
struct Sources {
    /// Of transfers that are shown, each with the end of its lease.
    holders: BTreeMap<Source, (TransferId, Instant)>,
    /// Of transfers that are forgotten, by that end: whoever asks for one from then on is refused for its age.
    passing: BTreeSet<(Instant, Fingerprint)>,
    /// The same.
    passed: BTreeSet<Fingerprint>,
}

/// A forgotten prefill: there are up to [`PASSING`], whose names would take several times as much memory. Two with one fingerprint would
/// refuse a prefill, never let one be moved twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fingerprint(u128);

impl Fingerprint {
    fn of((engine, request): &Source) -> Self {
        let mut hash = Xxh3::new();
        hash.update(engine.as_str().as_bytes());
        // No id has this byte.
        hash.update(&[0xff]);
        hash.update(request.as_str().as_bytes());
        Self(hash.digest128())
    }
}

/// Who has a prefill.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// This transfer.
    By(TransferId),
    /// One that is forgotten by now.
    Before,
}

impl Board {
    /// Takes an attempt's key for `fresh`, or finds what it stands for; then, before anyone else can ask, hands the transfer to `send`.
    /// When that fails for a key just taken, the key is free again. `None`: the key stands for something else.
    pub(crate) fn enlist<E>(
        &self,
        attempt: &AttemptId,
        key: AttemptKey,
        fresh: TransferId,
        send: impl FnOnce(&TransferId) -> Result<(), E>,
    ) -> Option<Result<TransferId, E>> {
        let mut attempts = self.attempts.lock();
        let (known, transfer) = match attempts.get(attempt) {
            Some((taken, _)) if *taken != key => return None,
            Some((_, transfer)) => (true, transfer.clone()),
            None => {
                attempts.insert(attempt.clone(), (key, fresh.clone()));
                (false, fresh)
            }
        };
        let sent = send(&transfer);
        if sent.is_err() && !known {
            attempts.remove(attempt);
        }
        Some(sent.map(|()| transfer))
    }

    /// Frees an attempt's key, if it stands for this transfer.
    pub(crate) fn free_attempt(&self, attempt: &AttemptId, transfer: &TransferId) {
        let mut attempts = self.attempts.lock();
        if attempts.get(attempt).is_some_and(|(_, taken)| taken == transfer) {
            attempts.remove(attempt);
        }
    }

    /// Takes a prefill for a transfer, on whichever rank of the pod; its lease is over at `until` unless P is sent heartbeats.
    ///
    /// # Errors
    /// Who has it.
    pub(crate) fn take_source(
        &self,
        engine: &EngineId,
        request: &EngineRequestId,
        transfer: &TransferId,
        until: Instant,
    ) -> Result<(), Taken> {
        let mut sources = self.sources.lock();
        let now = Instant::now();
        while sources.passing.first().is_some_and(|(end, _)| *end <= now) || sources.passing.len() > PASSING {
            let Some((_, source)) = sources.passing.pop_first() else { break };
            sources.passed.remove(&source);
        }
        let source = (engine.clone(), request.clone());
        if sources.passed.contains(&Fingerprint::of(&source)) {
            return Err(Taken::Before);
        }
        let (holder, _) = sources.holders.entry(source).or_insert_with(|| (transfer.clone(), until));
        if holder == transfer { Ok(()) } else { Err(Taken::By(holder.clone())) }
    }

    /// Frees a prefill for another attempt, if this transfer has it.
    pub(crate) fn free_source(&self, engine: &EngineId, request: &EngineRequestId, transfer: &TransferId) {
        let key = (engine.clone(), request.clone());
        let mut sources = self.sources.lock();
        if sources.holders.get(&key).is_some_and(|(holder, _)| holder == transfer) {
            sources.holders.remove(&key);
        }
    }

    /// The transfer that has moved a prefill is about to be forgotten; that it was moved is not, for as long as its lease could run.
    pub(crate) fn outlive(&self, engine: &EngineId, request: &EngineRequestId, transfer: &TransferId) {
        let key = (engine.clone(), request.clone());
        let mut sources = self.sources.lock();
        if sources.holders.get(&key).is_none_or(|(holder, _)| holder != transfer) {
            return;
        }
        if let Some((_, until)) = sources.holders.remove(&key) {
            let source = Fingerprint::of(&key);
            sources.passing.insert((until, source));
            sources.passed.insert(source);
        }
    }

    /// Shows a new transfer.
    pub(crate) fn show(&self, shown: Shown) -> watch::Sender<Arc<Shown>> {
        let transfer = shown.snapshot.transfer.clone();
        let (sender, receiver) = watch::channel(Arc::new(shown));
        self.shown.lock().insert(transfer, receiver);
        sender
    }

    /// Forgets a transfer.
    pub(crate) fn forget(&self, transfer: &TransferId) {
        self.shown.lock().remove(transfer);
    }

    /// Follows a transfer.
    pub(crate) fn follow(&self, transfer: &TransferId) -> Option<watch::Receiver<Arc<Shown>>> {
        self.shown.lock().get(transfer).cloned()
    }

    /// Those that pass the filter: the slowest or the newest first.
    pub(crate) fn list(&self, filter: &TransferFilter) -> Vec<TransferSnapshot> {
        let receivers: Vec<_> = self.shown.lock().values().cloned().collect();
        let snapshots = receivers.iter().map(|receiver| receiver.borrow().snapshot.clone());
        let wanted = |snapshot: &TransferSnapshot| {
            filter.state.is_none_or(|state| snapshot.state == state)
                && filter.dp_rank.is_none_or(|rank| snapshot.dp_rank == rank)
                && filter.attempt.as_ref().is_none_or(|attempt| snapshot.attempt == *attempt)
        };
        let mut snapshots: Vec<_> = snapshots.filter(wanted).collect();
        match filter.slowest {
            Some(count) => {
                let now = Instant::now();
                snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.total_so_far(now)));
                snapshots.truncate(count);
            }
            None => snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.started)),
        }
        snapshots
    }
}

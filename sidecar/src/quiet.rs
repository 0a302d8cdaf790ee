//! Whether an engine may end: nobody runs on it, and nobody needs a block of it any more.
//!
//! vLLM does not say which blocks it keeps for a reader. What can be known: requests that run or wait, handles that routers have reported,
//! and how full the KV cache is. The cache's figure is as old as the engine's last step, so it may stay above zero although everything was
//! given back; after P's lease without a request, without a handle and without a change of it, it means nothing, because no lease can be left.
//! That time is counted always (`Idle`), not only while somebody waits: of an engine that had nothing to do for a lease nobody waits for a
//! figure that is merely old.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv::ids::DpRank;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::model::{AllRanks, RankSnapshot};
use crate::watcher::Looked;

/// A rank whose engine is in use, and by what, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Global.
    pub dp_rank: DpRank,
    /// Not empty.
    pub reasons: Vec<String>,
}

/// An engine, seen by those who wait for it to be quiet.
#[derive(Debug)]
pub(crate) struct Quiet {
    lease: Duration,
    looked: watch::Receiver<Looked>,
    ranks: watch::Receiver<AllRanks>,
    idle: Arc<Mutex<Idle>>,
    /// How many wait.
    hooks: watch::Sender<usize>,
}

impl Quiet {
    /// Follows the looks at the engine in a task of its own, until nobody looks any more.
    pub(crate) fn watch(
        lease: Duration,
        looked: watch::Receiver<Looked>,
        ranks: watch::Receiver<AllRanks>,
        tasks: &TaskTracker,
    ) -> Self {
        let idle = Arc::<Mutex<Idle>>::default();
        let (kept, mut looks, now) = (Arc::clone(&idle), looked.clone(), ranks.clone());
        tasks.spawn(async move {
            while looks.changed().await.is_ok() {
                let seen = looks.borrow_and_update().clone();
                let ranks = now.borrow().clone();
                kept.lock().see(&seen, &ranks, Instant::now());
            }
        });
        Self { lease, looked, ranks, idle, hooks: watch::Sender::new(0) }
    }

    /// How many wait at the moment.
    pub(crate) fn waiting(&self) -> watch::Receiver<usize> {
        self.hooks.subscribe()
    }

    /// Waits until the engine has been quiet for `steady`.
    ///
    /// # Errors
    /// What is in the way after `at_most`.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn until(&self, steady: Duration, at_most: Duration) -> Result<(), Vec<InUse>> {
        let _hook = Hook::new(&self.hooks);
        let (deadline, mut looked) = (Instant::now() + at_most, self.looked.clone());
        let mut waiting = Waiting::new(self.lease, steady, self.idle.lock().since());
        // The look that is under way may have begun before this was asked.
        let mut next = looked.borrow().number.saturating_add(2);
        loop {
            let seen = match tokio::time::timeout_at(deadline, looked.wait_for(|seen| seen.number >= next)).await {
                Ok(Ok(seen)) => seen.clone(),
                Ok(Err(_)) | Err(_) => return Err(waiting.in_use()),
            };
            next = seen.number.saturating_add(1);
            let ranks = self.ranks.borrow().clone();
            if waiting.see(&seen, &ranks, Instant::now()) {
                return Ok(());
            }
        }
    }
}

/// Somebody who waits; dropped when he has his answer, or has left.
struct Hook<'a>(&'a watch::Sender<usize>);

impl<'a> Hook<'a> {
    fn new(hooks: &'a watch::Sender<usize>) -> Self {
        hooks.send_modify(|waiting| *waiting += 1);
        Self(hooks)
    }
}

impl Drop for Hook<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

/// Since when nothing has run on an engine and nobody has needed a block of it, as far as is known.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    since: Option<Instant>,
    usage: BTreeMap<DpRank, f64>,
}

impl Idle {
    /// Takes in a look at the engine. A figure of its cache that has changed is a step that it has made.
    pub(crate) fn see(&mut self, looked: &Looked, ranks: &[Arc<RankSnapshot>], now: Instant) {
        let usage = ranks.iter().map(|rank| (rank.dp_rank, usage(looked, rank))).collect();
        let busy = usage != self.usage || ranks.iter().any(|rank| !busy_reasons(looked, rank).is_empty());
        self.usage = usage;
        self.since = if busy { None } else { self.since.or(Some(now)) };
    }

    /// The time; nothing when it is in use.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }
}

/// How full the cache is, from 0 to 1.
fn usage(looked: &Looked, rank: &RankSnapshot) -> f64 {
    looked.loads.as_ref().and_then(|loads| loads.get(&rank.dp_rank.0)).map_or(0.0, |load| load.kv_usage)
}

/// What was seen while somebody waits for the engine to be quiet.
#[derive(Debug)]
pub(crate) struct Waiting {
    lease: Duration,
    steady: Duration,
    idle_since: Option<Instant>,
    quiet_since: Option<Instant>,
    in_use: Vec<InUse>,
}

impl Waiting {
    /// `steady`: how long it must have been quiet; `idle_since`: as [`Idle`] knows it.
    pub(crate) fn new(lease: Duration, steady: Duration, idle_since: Option<Instant>) -> Self {
        Self { lease, steady, idle_since, quiet_since: None, in_use: Vec::new() }
    }

    /// Takes in a look at the engine; whether it has been quiet for long enough.
    pub(crate) fn see(&mut self, looked: &Looked, ranks: &[Arc<RankSnapshot>], now: Instant) -> bool {
        self.in_use.clear();
        let (mut busy, mut filled) = (false, false);
        for rank in ranks {
            let mut reasons = busy_reasons(looked, rank);
            busy |= !reasons.is_empty();
            let usage = usage(looked, rank);
            if usage > 0.0 {
                filled = true;
                reasons.push(format!("{:.1} % of its KV cache are in use", usage * 100.0));
            }
            if !reasons.is_empty() {
                self.in_use.push(InUse { dp_rank: rank.dp_rank, reasons });
            }
        }
        if busy {
            (self.idle_since, self.quiet_since) = (None, None);
            return false;
        }
        let idle = now.saturating_duration_since(*self.idle_since.get_or_insert(now));
        if filled && idle < self.lease {
            self.quiet_since = None;
            return false;
        }
        now.saturating_duration_since(*self.quiet_since.get_or_insert(now)) >= self.steady
    }

    /// What was in the way at the last look.
    pub(crate) fn in_use(self) -> Vec<InUse> {
        self.in_use
    }
}

fn busy_reasons(looked: &Looked, rank: &RankSnapshot) -> Vec<String> {
    let mut reasons = Vec::new();
    let load = looked.loads.as_ref().map(|loads| loads.get(&rank.dp_rank.0).copied().unwrap_or_default());
    match load {
        None => reasons.push("its engine does not say what it does".to_owned()),
        Some(load) if load.running + load.waiting > 0 => {
            reasons.push(format!("{} requests run and {} wait", load.running, load.waiting));
        }
        Some(_) => {}
    }
    if rank.handles > 0 {
        reasons.push(format!("{} requests have blocks that somebody is to read", rank.handles));
    }
    if rank.in_flight > 0 {
        reasons.push(format!("{} transfers are under way", rank.in_flight));
    }
    reasons
}

#[cfg(test)]
mod tests;

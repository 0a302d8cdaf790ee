//! Whether an engine may end: nobody runs on it, and nobody needs a block of it any more.
//!
//! vLLM does not say which blocks it keeps for a reader. What can be known: requests that run or wait, handles that routers have reported,
//! and how full the KV cache is. The cache's figure is as old as the engine's last step, so it may stay above zero although everything was
//! given back; after P's lease without a request and without a handle it means nothing, because no lease can be left.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::DpRank;
use tokio::time::Instant;

use crate::model::RankSnapshot;
use crate::watcher::Looked;

/// A rank whose engine is in use, and by what, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Global.
    pub dp_rank: DpRank,
    /// Not empty.
    pub reasons: Vec<String>,
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
    /// `steady`: how long it must have been quiet.
    pub(crate) fn new(lease: Duration, steady: Duration) -> Self {
        Self { lease, steady, idle_since: None, quiet_since: None, in_use: Vec::new() }
    }

    /// Takes in a look at the engine; whether it has been quiet for long enough.
    pub(crate) fn see(&mut self, looked: &Looked, ranks: &[Arc<RankSnapshot>], now: Instant) -> bool {
        self.in_use.clear();
        let (mut busy, mut filled) = (false, false);
        for rank in ranks {
            let mut reasons = busy_reasons(looked, rank);
            busy |= !reasons.is_empty();
            let usage =
                looked.loads.as_ref().and_then(|loads| loads.get(&rank.dp_rank.0)).map_or(0.0, |load| load.kv_usage);
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

//! Rank states as numbered events: every change of a rank gets the next number, and whoever connects gets the current state of all.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::{AllRanks, RankSnapshot};

/// A rank's newest state and the number of the change that made it so.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbered {
    /// Grows with every change of any rank; starts at 1 with the process.
    pub id: u64,
    /// The state.
    pub rank: Arc<RankSnapshot>,
}

/// The current states, in the order of their numbers.
pub type Current = Arc<Vec<Numbered>>;

/// Hands out the numbered states. One task numbers, any number of clients watch.
#[derive(Clone, Debug)]
pub struct RankEvents {
    current: watch::Receiver<Current>,
}

impl RankEvents {
    /// Numbers what the pod publishes until `stop`.
    pub fn start(mut ranks: watch::Receiver<AllRanks>, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let mut numberer = Numberer::default();
        let first = numberer.next(&ranks.borrow_and_update().clone());
        let (publish, current) = watch::channel(first);
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = ranks.changed() => if changed.is_err() { return },
                }
                let newest = ranks.borrow_and_update().clone();
                publish.send_replace(numberer.next(&newest));
            }
        });
        Self { current }
    }

    /// Follows the states from now on.
    pub fn follow(&self) -> watch::Receiver<Current> {
        self.current.clone()
    }
}

#[derive(Debug, Default)]
struct Numberer {
    last: u64,
    /// By the ranks' places in the pod.
    known: Vec<Numbered>,
}

impl Numberer {
    /// Keeps the numbers of ranks that are as they were.
    fn next(&mut self, ranks: &[Arc<RankSnapshot>]) -> Current {
        for (place, rank) in ranks.iter().enumerate() {
            let known = self.known.get_mut(place);
            // Mostly one of them has changed: the others are the very same values.
            if known.as_ref().is_some_and(|known| Arc::ptr_eq(&known.rank, rank) || known.rank == *rank) {
                continue;
            }
            self.last += 1;
            let numbered = Numbered { id: self.last, rank: Arc::clone(rank) };
            match known {
                Some(known) => *known = numbered,
                None => self.known.push(numbered),
            }
        }
        let mut current = self.known.clone();
        current.sort_by_key(|numbered| numbered.id);
        Arc::new(current)
    }
}

//! Rank states as numbered events: every change of a rank gets the next number, and whoever connects gets the current state of all.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::RankSnapshot;

/// A rank's newest state and the number of the change that made it so.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbered {
    /// Grows with every change of any rank; starts at 1 with the process.
    pub id: u64,
    /// The state.
    pub rank: RankSnapshot,
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
    pub fn start(
        mut ranks: watch::Receiver<Arc<Vec<RankSnapshot>>>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
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
    current: Current,
}

impl Numberer {
    /// Keeps the numbers of ranks that are as they were.
    fn next(&mut self, ranks: &[RankSnapshot]) -> Current {
        let mut numbered: Vec<Numbered> = Vec::with_capacity(ranks.len());
        for rank in ranks {
            let same = self.current.iter().find(|known| known.rank == *rank);
            let id = same.map_or_else(
                || {
                    self.last += 1;
                    self.last
                },
                |known| known.id,
            );
            numbered.push(Numbered { id, rank: rank.clone() });
        }
        numbered.sort_by_key(|numbered| numbered.id);
        self.current = Arc::new(numbered);
        Arc::clone(&self.current)
    }
}

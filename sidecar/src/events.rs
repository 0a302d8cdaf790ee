//! Rank states as numbered events: every change of a rank gets the next number, and whoever connects gets the current state of all.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::{AllRanks, RankSnapshot};

/// Between two publications: what changes meanwhile, of however many ranks, is looked at once.
const TOGETHER: Duration = Duration::from_millis(5);

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
                tokio::select! { () = stop.cancelled() => return, () = sleep(TOGETHER) => {} }
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

#[cfg(test)]
mod tests {
    use kv::ids::LocalRank;

    use super::*;

    fn ids(current: &Current) -> Vec<(u16, u64)> {
        current.iter().map(|numbered| (numbered.rank.local_rank.0, numbered.id)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_goes_out_at_once_and_those_that_follow_it_go_together() {
        let ranks = (0..3).map(|local| Arc::new(RankSnapshot::unknown(LocalRank(local), 0, 1))).collect();
        let (sender, receiver) = watch::channel(Arc::new(ranks));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut current = RankEvents::start(receiver, &tasks, stop.clone()).follow();
        assert_eq!(ids(&current.borrow_and_update()), [(0, 1), (1, 2), (2, 3)]);
        let change = |place: usize| {
            sender.send_modify(|ranks| {
                let ranks = Arc::make_mut(ranks);
                let changed = RankSnapshot { handles: ranks[place].handles + 1, ..(*ranks[place]).clone() };
                ranks[place] = Arc::new(changed);
            });
        };
        let began = tokio::time::Instant::now();
        change(1);
        current.changed().await.unwrap();
        assert_eq!(
            (ids(&current.borrow_and_update()), began.elapsed()),
            (vec![(0, 1), (2, 3), (1, 4)], Duration::ZERO)
        );
        for place in [0, 2, 0] {
            change(place);
            tokio::task::yield_now().await;
        }
        current.changed().await.unwrap();
        assert_eq!((ids(&current.borrow_and_update()), began.elapsed()), (vec![(1, 4), (0, 5), (2, 6)], TOGETHER));
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    }
}

//! How many requests are worked on and how many wait: both bounded, and counted by guards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the router's queue is full; retry later")]
    Full,
    #[error("the request waited too long for its turn; retry later")]
    Late,
    #[error("the router is shutting down; retry elsewhere")]
    Draining,
}

/// The router's door.
#[derive(Debug)]
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    all_places: u32,
    running: Arc<Semaphore>,
    queue_deadline: Duration,
    draining: AtomicBool,
}

/// A place in the router, working or waiting.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held until dropped")] OwnedSemaphorePermit);

/// A place among those that are worked on.
#[derive(Debug)]
pub(crate) struct Running {
    _place: Place,
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    pub(crate) fn new(max_in_flight: u32, max_queue: u32, queue_deadline: Duration) -> Self {
        let all_places = max_in_flight.saturating_add(max_queue).min(1 << 24);
        let permits = |count: u32| Arc::new(Semaphore::new(usize::try_from(count).unwrap_or(Semaphore::MAX_PERMITS)));
        Self {
            places: permits(all_places),
            all_places,
            running: permits(max_in_flight.min(all_places)),
            queue_deadline,
            draining: AtomicBool::new(false),
        }
    }

    /// Takes a place at once or not at all.
    pub(crate) fn enter(&self) -> Result<Place, Refused> {
        if self.is_draining() {
            return Err(Refused::Draining);
        }
        Arc::clone(&self.places).try_acquire_owned().map(Place).map_err(|_| Refused::Full)
    }

    /// Waits, first come first served, to be worked on.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place back.
    pub(crate) async fn start(&self, place: Place) -> Result<Running, Refused> {
        let turn = tokio::time::timeout(self.queue_deadline, Arc::clone(&self.running).acquire_owned()).await;
        match turn {
            Ok(Ok(permit)) => Ok(Running { _place: place, _permit: permit }),
            Ok(Err(_)) => Err(Refused::Draining),
            Err(_) => Err(Refused::Late),
        }
    }

    /// From now on nobody is let in.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Resolves when every place is free, that is when the last request is through.
    pub(crate) async fn empty(&self) {
        drop(self.places.acquire_many(self.all_places).await);
    }

    /// Requests inside, working or waiting.
    pub(crate) fn inside(&self) -> usize {
        usize::try_from(self.all_places).unwrap_or(usize::MAX).saturating_sub(self.places.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_at_once_and_a_slow_one_in_time() {
        let door = Admission::new(1, 1, Duration::from_secs(3));
        let first = door.start(door.enter().unwrap()).await.unwrap();
        let second = door.enter().unwrap();
        assert_eq!(door.enter().unwrap_err(), Refused::Full);
        assert_eq!(door.start(second).await.unwrap_err(), Refused::Late);
        assert_eq!(door.inside(), 1);
        drop(first);
        assert_eq!(door.inside(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_lets_nobody_in_and_ends_with_the_last_request() {
        let door = Admission::new(2, 0, Duration::from_secs(3));
        let running = door.start(door.enter().unwrap()).await.unwrap();
        door.drain();
        assert_eq!(door.enter().unwrap_err(), Refused::Draining);
        assert!(tokio::time::timeout(Duration::from_secs(60), door.empty()).await.is_err());
        drop(running);
        door.empty().await;
    }
}

//! How many requests are worked on, how many wait, and how many bytes their bodies take: all bounded, counted by guards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the router's queue is full; retry later")]
    Full,
    #[error("the request waited too long for its turn; retry later")]
    Late,
    #[error("the router holds as many request bodies as it may; retry later")]
    NoMemory,
    #[error("the router is shutting down; retry elsewhere")]
    Draining,
}

/// What bounds a router.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) in_flight: u32,
    pub(crate) queue: u32,
    pub(crate) queue_deadline: Duration,
    pub(crate) body_bytes: u64,
}

/// Bodies are counted in units of so many bytes.
const UNIT: u64 = 1024;

/// The router's door.
#[derive(Debug)]
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    /// Counts the places that are taken; the semaphore's own number says nothing while somebody waits for all of it.
    taken: TaskTracker,
    running: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    queue_deadline: Duration,
    draining: AtomicBool,
}

/// A place in the router, working or waiting.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    _taken: TaskTrackerToken,
}

/// Memory for one body.
#[derive(Debug)]
pub(crate) struct Reserved(#[expect(dead_code, reason = "held until dropped")] OwnedSemaphorePermit);

/// A place among those that are worked on.
#[derive(Debug)]
pub(crate) struct Running {
    _place: Place,
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        let Limits { in_flight, queue, queue_deadline, body_bytes } = limits;
        let all_places = in_flight.saturating_add(queue).min(1 << 24);
        let units = u32::try_from(body_bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let permits = |count: u32| Arc::new(Semaphore::new(usize::try_from(count).unwrap_or(Semaphore::MAX_PERMITS)));
        Self {
            places: permits(all_places),
            taken: TaskTracker::new(),
            running: permits(in_flight.min(all_places)),
            bodies: permits(units),
            queue_deadline,
            draining: AtomicBool::new(false),
        }
    }

    /// Takes a place at once or not at all.
    pub(crate) fn enter(&self) -> Result<Place, Refused> {
        let taken = self.taken.token();
        // Asked after the token was taken, so that a drain either is seen here or waits for this request.
        if self.is_draining() {
            return Err(Refused::Draining);
        }
        let permit = Arc::clone(&self.places).try_acquire_owned();
        permit.map(|permit| Place { _permit: permit, _taken: taken }).map_err(|_| Refused::Full)
    }

    /// Takes memory for a body of at most so many bytes, at once or not at all.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Reserved, Refused> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.bodies).try_acquire_many_owned(units);
        permit.map(Reserved).map_err(|_| Refused::NoMemory)
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
        self.taken.close();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Resolves after a [`Self::drain`] when the last request is through.
    pub(crate) async fn empty(&self) {
        self.taken.wait().await;
    }

    /// Requests inside, working or waiting.
    pub(crate) fn inside(&self) -> usize {
        self.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(in_flight: u32, queue: u32) -> Admission {
        Admission::new(Limits { in_flight, queue, queue_deadline: Duration::from_secs(3), body_bytes: 10 * UNIT })
    }

    #[test]
    fn bodies_share_a_budget() {
        let door = door(1, 1);
        let first = door.reserve(6 * UNIT - 1).unwrap();
        assert_eq!(door.reserve(4 * UNIT + 1).unwrap_err(), Refused::NoMemory);
        let second = door.reserve(4 * UNIT).unwrap();
        drop((first, second));
        assert!(door.reserve(10 * UNIT).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_at_once_and_a_slow_one_in_time() {
        let door = door(1, 1);
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
        let door = door(2, 0);
        let running = door.start(door.enter().unwrap()).await.unwrap();
        door.drain();
        assert_eq!(door.enter().unwrap_err(), Refused::Draining);
        {
            let mut empty = std::pin::pin!(door.empty());
            assert!(tokio::time::timeout(Duration::from_secs(60), &mut empty).await.is_err());
            assert_eq!(door.inside(), 1, "also while somebody waits for the last one");
            drop(running);
            empty.await;
        }
        assert_eq!(door.inside(), 0);
    }
}

//! How many requests are worked on, how many wait and in which order, and how many bytes their bodies take: all bounded,
//! counted by guards.
//!
//! A request that waits has a turn: the moment at which it came, less a head start for each step of priority. The earliest turn
//! goes next, so the urgent overtake and nobody is overtaken for ever. When the queue is full, a newcomer with an earlier turn
//! than the last one takes its place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::keys::{Bucket, InUse, Key, MOST_URGENT, Rate};

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the router's queue is full; retry later")]
    Full,
    #[error("the request waited too long for its turn; retry later")]
    Late,
    #[error("the router holds as many request bodies as it may; retry later")]
    NoMemory,
    /// With the seconds after which there is a token again.
    #[error("requests come faster than they may; retry later")]
    TooFast(u32),
    #[error("this API key has as many requests under way as it may; retry later")]
    KeyBusy,
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
    /// Over all keys.
    pub(crate) rate: Option<Rate>,
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    pub(crate) key: Option<Arc<Key>>,
    /// From 0 to [`MOST_URGENT`].
    pub(crate) priority: u8,
}

/// Bodies are counted in units of so many bytes.
const UNIT: u64 = 1024;

/// How much earlier a request is taken to have come for each step of priority, in milliseconds.
const HEAD_START: u64 = 1000;

/// A place in the order of those who wait: a moment in milliseconds, and a number that no other has.
type Turn = (u64, u64);

/// The router's door.
#[derive(Debug)]
pub(crate) struct Admission {
    in_flight: u32,
    places: u32,
    queue: Mutex<Queue>,
    /// Counts the places that are taken, for those who wait for all of them to be free.
    taken: TaskTracker,
    bodies: Arc<Semaphore>,
    rate: Option<Bucket>,
    queue_deadline: Duration,
    /// Known early to those who would only be refused later.
    draining: AtomicBool,
    opened: Instant,
}

/// While somebody waits, `running` is as large as it may be.
#[derive(Debug, Default)]
struct Queue {
    /// Nobody is let in any more.
    closed: bool,
    inside: u32,
    running: u32,
    waiting: BTreeMap<Turn, oneshot::Sender<Result<Grant, Refused>>>,
    next: u64,
}

/// A place in the router, working or waiting.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    turn: Turn,
    _in_use: Option<InUse>,
    _taken: TaskTrackerToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.queue.lock().inside -= 1;
    }
}

/// Memory for one body.
#[derive(Debug)]
pub(crate) struct Reserved(#[expect(dead_code, reason = "held until dropped")] OwnedSemaphorePermit);

/// A place among those that are worked on.
#[derive(Debug)]
pub(crate) struct Running {
    _grant: Grant,
    _place: Place,
}

/// The right to be worked on; passes to the next who waits. Empty once it has been passed on.
#[derive(Debug)]
struct Grant(Option<Arc<Admission>>);

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(admission) = self.0.take() {
            admission.pass_on();
        }
    }
}

/// Somebody who waits; leaves the queue when dropped.
struct Waiting<'a>(&'a Place);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // A grant that is on its way comes back when the receiving end goes.
        drop(self.0.admission.queue.lock().waiting.remove(&self.0.turn));
    }
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        let Limits { in_flight, queue, queue_deadline, body_bytes, rate } = limits;
        let places = in_flight.saturating_add(queue).min(1 << 24);
        let units = u32::try_from(body_bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        Self {
            in_flight: in_flight.min(places),
            places,
            queue: Mutex::default(),
            taken: TaskTracker::new(),
            bodies: Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(Semaphore::MAX_PERMITS))),
            rate: rate.map(Bucket::new),
            queue_deadline,
            draining: AtomicBool::new(false),
            opened: Instant::now(),
        }
    }

    /// Takes a place at once or not at all.
    pub(crate) fn enter(self: &Arc<Self>, caller: &Caller) -> Result<Place, Refused> {
        let taken = self.taken.token();
        if self.is_draining() {
            return Err(Refused::Draining);
        }
        let in_use = caller.key.as_ref().map(|key| key.occupy().ok_or(Refused::KeyBusy)).transpose()?;
        caller.key.as_ref().map_or(Ok(()), |key| key.spend()).map_err(Refused::TooFast)?;
        self.rate.as_ref().map_or(Ok(()), Bucket::spend).map_err(Refused::TooFast)?;
        let behind = u64::from(MOST_URGENT.saturating_sub(caller.priority)) * HEAD_START;
        let due = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(behind);
        let mut queue = self.queue.lock();
        // Asked under the lock and after the token was taken: a drain either is seen here or waits for this request.
        if queue.closed {
            return Err(Refused::Draining);
        }
        let turn = (due, queue.next);
        if queue.inside >= self.places {
            let last = queue.waiting.last_entry().filter(|last| *last.key() > turn).ok_or(Refused::Full)?;
            // Whoever no longer listens has gone by itself.
            drop(last.remove().send(Err(Refused::Full)));
        }
        queue.next += 1;
        queue.inside += 1;
        drop(queue);
        Ok(Place { admission: Arc::clone(self), turn, _in_use: in_use, _taken: taken })
    }

    /// Takes memory for a body of at most so many bytes, at once or not at all.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Reserved, Refused> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.bodies).try_acquire_many_owned(units);
        permit.map(Reserved).map_err(|_| Refused::NoMemory)
    }

    /// Waits to be worked on, the earliest turn first.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place back.
    pub(crate) async fn start(&self, place: Place) -> Result<Running, Refused> {
        let granted = {
            let mut queue = self.queue.lock();
            if queue.running < self.in_flight {
                queue.running += 1;
                None
            } else {
                let (tx, rx) = oneshot::channel();
                queue.waiting.insert(place.turn, tx);
                Some(rx)
            }
        };
        let grant = match granted {
            None => Grant(Some(Arc::clone(&place.admission))),
            Some(rx) => {
                let _waiting = Waiting(&place);
                match timeout(self.queue_deadline, rx).await {
                    Ok(Ok(granted)) => granted?,
                    Ok(Err(_)) => return Err(Refused::Draining),
                    Err(_) => return Err(Refused::Late),
                }
            }
        };
        Ok(Running { _grant: grant, _place: place })
    }

    /// Gives the right to be worked on to the next, or keeps it until somebody comes.
    fn pass_on(self: Arc<Self>) {
        let mut grant = Grant(None);
        loop {
            let next = {
                let mut queue = self.queue.lock();
                let next = queue.waiting.pop_first();
                if next.is_none() {
                    queue.running -= 1;
                }
                next
            };
            let Some((_, next)) = next else { return };
            grant.0 = Some(Arc::clone(&self));
            match next.send(Ok(grant)) {
                Ok(()) => return,
                Err(unheard) => {
                    // Its receiver has just left. The right must not be dropped, or it would be passed on from within.
                    let Ok(mut back) = unheard else { return };
                    back.0 = None;
                    grant = back;
                }
            }
        }
    }

    /// From now on nobody is let in.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.queue.lock().closed = true;
        self.taken.close();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
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
mod tests;

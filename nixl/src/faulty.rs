//! A fabric that goes wrong on purpose: wraps another one, by typed rules that may change at any time.
//!
//! It keeps the promises of [`Fabric`]: after a failed read memory is not quiet, until the agent has been closed; nothing
//! lands after that, unless the plan says that it cannot be destroyed. Delays run on tokio's clock, so they are virtual under
//! paused time. Reads and notifications must be started inside a tokio runtime while a rule applies.

mod plan;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use plan::{FaultPlan, NotifyFault, ReadFault};

use crate::{
    error::{FabricError, NixlError, StatusKind},
    fabric::{Attention, Closed, Fabric, FabricStats, Notification, Read, ReadDone, Reading},
    memory::Memory,
    name::AgentName,
    pending::{Answer, Pending},
    region::Region,
};

/// What NIXL answers to most things that go wrong while a transfer runs.
const FAILED: FabricError =
    FabricError::Transfer(NixlError { call: "nixl_capi_get_xfer_status", code: -2, kind: StatusKind::Backend });
/// What it answers when it refuses a post.
const REFUSED: FabricError =
    FabricError::Transfer(NixlError { call: "nixl_capi_post_xfer_req", code: -2, kind: StatusKind::Backend });

/// A fabric with faults.
pub struct Faulty {
    inner: Arc<dyn Fabric>,
    plan: FaultPlan,
    tasks: TaskTracker,
    /// Nothing lands after it is cancelled.
    closed: CancellationToken,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    hung: Mutex<Vec<(u64, Answer<ReadDone>)>>,
    /// Reads that have been posted and not answered, the hung ones not counted.
    open: AtomicUsize,
    buried: AtomicU64,
    buried_bytes: AtomicU64,
}

impl Faulty {
    /// Wraps a fabric. Several may follow one plan.
    #[must_use]
    pub fn wrap(inner: Arc<dyn Fabric>, plan: FaultPlan) -> Arc<Self> {
        Arc::new(Self {
            inner,
            plan,
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
            state: Arc::default(),
        })
    }

    fn bury(&self, bytes: u64) {
        self.state.buried.fetch_add(1, Ordering::Relaxed);
        self.state.buried_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Runs `job` to its end, or until the fabric is closed; answers what it says, else that the read was abandoned.
    fn run(&self, job: impl Future<Output = Result<ReadDone, FabricError>> + Send + 'static) -> Reading {
        let (answer, done) = Pending::pair();
        let (closed, state) = (self.closed.clone(), Arc::clone(&self.state));
        state.open.fetch_add(1, Ordering::Relaxed);
        let _detached = self.tasks.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = closed.cancelled() => Err(FabricError::Abandoned),
                ended = job => ended,
            };
            state.open.fetch_sub(1, Ordering::Relaxed);
            answer.send(ended);
        });
        Reading { posted: Pending::ready(Ok(())), done }
    }

    fn read_badly(&self, read: Read, fault: ReadFault) -> Reading {
        let inner = Arc::clone(&self.inner);
        match fault {
            ReadFault::Delay(delay) => self.run(async move {
                let posted = tokio::time::Instant::now();
                tokio::time::sleep(delay).await;
                let done = inner.read(read).done.await?;
                // To whoever reads, it was the wire that took so long.
                Ok(ReadDone { wire: posted.elapsed(), ..done })
            }),
            ReadFault::RefusePost => {
                self.bury(read.local.bytes());
                Reading { posted: Pending::ready(Err(REFUSED)), done: Pending::ready(Err(REFUSED)) }
            }
            ReadFault::FailEmpty => {
                self.bury(read.local.bytes());
                Reading { posted: Pending::ready(Ok(())), done: Pending::ready(Err(FAILED)) }
            }
            ReadFault::FailHalf => {
                self.bury(read.local.bytes());
                let half = read.local.entries().len() / 2;
                let (local, remote) = (read.local.first(half), read.remote.first(half));
                self.run(async move {
                    // The half that lands ends well or not: the whole fails in any case.
                    drop(inner.read(Read { peer: read.peer, local, remote, notify: None }).done.await);
                    Err(FAILED)
                })
            }
            ReadFault::FailThenLand(delay) => {
                self.bury(read.local.bytes());
                let _late = self.run(async move {
                    tokio::time::sleep(delay).await;
                    inner.read(Read { notify: None, ..read }).done.await
                });
                Reading { posted: Pending::ready(Ok(())), done: Pending::ready(Err(FAILED)) }
            }
            ReadFault::Corrupt => self.run(async move {
                let local = read.local.clone();
                let done = inner.read(read).done.await?;
                for &(offset, len) in local.entries() {
                    let mut last = [0];
                    // Descriptors are range-checked, so neither copy can be refused.
                    if local.region().read_at(offset + len - 1, &mut last).is_ok() {
                        let _written = local.region().write_at(offset + len - 1, &last.map(|byte| !byte));
                    }
                }
                Ok(done)
            }),
            ReadFault::Hang => {
                let (answer, done) = Pending::pair();
                self.state.hung.lock().push((read.local.bytes(), answer));
                Reading { posted: Pending::ready(Ok(())), done }
            }
        }
    }
}

impl Fabric for Faulty {
    fn name(&self) -> &AgentName {
        self.inner.name()
    }

    fn register(&self, memory: Memory) -> Pending<Region> {
        self.inner.register(memory)
    }

    fn local_metadata(&self) -> Pending<Bytes> {
        self.inner.local_metadata()
    }

    fn load_peer(&self, metadata: Bytes) -> Pending<AgentName> {
        self.inner.load_peer(metadata)
    }

    fn forget_peer(&self, peer: AgentName) -> Pending<()> {
        self.inner.forget_peer(peer)
    }

    fn read(&self, read: Read) -> Reading {
        let room = self.plan.for_room().filter(|_| !self.closed.is_cancelled());
        let open = || self.state.open.load(Ordering::Relaxed) + self.state.hung.lock().len();
        if room.is_some_and(|most| open() >= most) {
            let busy = FabricError::Busy;
            return Reading { posted: Pending::ready(Err(busy.clone())), done: Pending::ready(Err(busy)) };
        }
        match self.plan.for_read() {
            Some(fault) if !self.closed.is_cancelled() => self.read_badly(read, fault),
            _ => self.inner.read(read),
        }
    }

    fn notify(&self, peer: AgentName, message: Bytes) -> Pending<()> {
        match self.plan.for_notify() {
            None => self.inner.notify(peer, message),
            Some(NotifyFault::Drop) => Pending::ready(Ok(())),
            Some(NotifyFault::Refuse) => Pending::ready(Err(FabricError::Nixl(NixlError {
                call: "nixl_capi_gen_notif",
                code: -2,
                kind: StatusKind::Backend,
            }))),
            Some(NotifyFault::Double) => {
                drop(self.inner.notify(peer.clone(), message.clone()));
                self.inner.notify(peer, message)
            }
        }
    }

    fn take_notifications(&self) -> Option<mpsc::Receiver<Notification>> {
        self.inner.take_notifications()
    }

    fn attention(&self, attention: Attention) {
        self.inner.attention(attention);
    }

    fn stats(&self) -> FabricStats {
        let mut stats = self.inner.stats();
        let hung = self.state.hung.lock();
        stats.in_flight += hung.len();
        stats.in_flight_bytes += hung.iter().map(|read| read.0).sum::<u64>();
        stats.buried += self.state.buried.load(Ordering::Relaxed);
        stats.buried_bytes += self.state.buried_bytes.load(Ordering::Relaxed);
        stats
    }

    fn close(&self, deadline: Duration) -> Pending<Closed> {
        if self.plan.for_close() {
            // Nothing that it holds is let go, the inner one included, and nobody is answered.
            return Pending::ready(Ok(Closed::Stuck));
        }
        self.closed.cancel();
        let hung = std::mem::take(&mut *self.state.hung.lock());
        let disturbed = !hung.is_empty() || self.state.buried.load(Ordering::Relaxed) > 0;
        for (_bytes, answer) in hung {
            answer.send(Err(FabricError::Abandoned));
        }
        let closing = self.inner.close(deadline);
        if !disturbed {
            return closing;
        }
        let (answer, pending) = Pending::pair();
        let _detached = self.tasks.spawn(async move {
            answer.send(closing.await.map(|how| if how == Closed::Quiet { Closed::Destroyed } else { how }));
        });
        pending
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).field("plan", &self.plan).finish_non_exhaustive()
    }
}

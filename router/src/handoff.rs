//! What the router owes to sidecars: a prefill's pinned blocks, a transfer under way, a landed transfer.
//!
//! Each is held by a value; whoever drops it, for whatever reason (a client that left included), has the debt paid by a task:
//! a landed transfer is finished, a transfer under way is cancelled, pinned blocks are released – these only once it is
//! certain that no transfer for them can still be running (invariant N).

mod claimed;
mod endings;

use std::time::Duration;

use http::{StatusCode, Uri};
use kv::ids::{DpRank, EngineRequestId, TransferId};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::sidecar::{HandleReport, LandedAnswer, LetGo, SidecarError, Sidecars, Traced, TransferAsk};
use crate::ticket::Receipt;
pub(crate) use claimed::{Claimed, NotHeld};
use endings::Endings;

/// Tries of each notice to a sidecar; between them [`PAUSE`].
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// Makes the values of this module.
#[derive(Clone, Debug)]
pub(crate) struct Handoffs {
    sidecars: Sidecars,
    tasks: TaskTracker,
    endings: Endings,
    /// Blocks that are read sooner are never reported to P's sidecar.
    unseen: Duration,
}

/// A prefill's blocks, pinned in P's engine. Dropped: P's sidecar is asked to release them.
#[derive(Debug)]
pub(crate) struct PinnedBlocks {
    settle: Option<oneshot::Sender<LetGo>>,
}

impl PinnedBlocks {
    /// The blocks have been read: D's sidecar tells P's engine, P's sidecar only forgets them.
    fn read(mut self) {
        self.settle(LetGo::Read);
    }

    /// Nobody knows whether they are being read: P's lease has to end them.
    fn leave_to_lease(mut self) {
        self.settle = None;
    }

    fn settle(&mut self, why: LetGo) {
        if let Some(settle) = self.settle.take()
            && settle.send(why).is_err()
        {
            debug!("pinned blocks outlive the task that settles them");
        }
    }
}

impl Drop for PinnedBlocks {
    fn drop(&mut self) {
        self.settle(LetGo::Abandoned);
    }
}

/// A landed transfer with its receipt.
#[derive(Debug)]
pub(crate) struct Landed {
    pub(crate) receipt: Receipt,
    pub(crate) claimed: Claimed,
}

/// A transfer that ended without a receipt.
#[derive(Debug)]
pub(crate) struct PullFailed {
    pub(crate) error: SidecarError,
    /// The prefill's blocks, when no transfer for them can be running any more.
    pub(crate) blocks: Option<PinnedBlocks>,
}

/// A transfer that has been asked for. Dropped before the answer: it is ended, and the blocks settled by how it ended.
struct UnderWay<'a> {
    handoffs: &'a Handoffs,
    owed: Option<(TransferAsk, PinnedBlocks)>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some((ask, blocks)) = self.owed.take() {
            self.handoffs.settle_unclear(ask, blocks);
        }
    }
}

impl Handoffs {
    pub(crate) fn new(sidecars: Sidecars, tasks: TaskTracker, unseen: Duration) -> Self {
        Self { endings: Endings::new(sidecars.clone(), tasks.clone()), sidecars, tasks, unseen }
    }

    /// The same, for one attempt's sake.
    pub(crate) fn of(&self, traced: Traced) -> Self {
        Self { sidecars: self.sidecars.of(traced), ..self.clone() }
    }

    /// Takes charge of a prefill's blocks and reports them to P's sidecar, in the background and at best effort, unless they are read
    /// before anybody could look at them.
    pub(crate) fn pinned(&self, sidecar: &Uri, report: HandleReport) -> PinnedBlocks {
        let (tx, rx) = oneshot::channel();
        let (sidecars, sidecar, unseen) = (self.sidecars.clone(), sidecar.clone(), self.unseen);
        self.tasks.spawn(async move {
            let mut rx = rx;
            let early = timeout(unseen, &mut rx).await;
            if !unseen.is_zero() && matches!(early, Ok(Ok(LetGo::Read))) {
                return;
            }
            if let Err(error) = sidecars.report_handle(&sidecar, &report).await {
                debug!(error = &error as &dyn std::error::Error, "prefill's blocks are not reported");
            }
            let why = match early {
                Ok(early) => early,
                Err(_) => rx.await,
            };
            // Without a word the blocks are left to P's lease.
            if let Ok(why) = why {
                release(&sidecars, &sidecar, report.rank, &report.request, why).await;
            }
        });
        PinnedBlocks { settle: Some(tx) }
    }

    /// Asks D's sidecar for a transfer and waits for its receipt.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, which cancels the transfer, and has a task find out how it ended; the blocks are released
    /// when the sidecar has confirmed that it has not landed.
    pub(crate) async fn pull(&self, ask: TransferAsk, blocks: PinnedBlocks) -> Result<Landed, PullFailed> {
        let asked_at = Instant::now();
        let mut asked = UnderWay { handoffs: self, owed: Some((ask, blocks)) };
        let answered = match &asked.owed {
            Some((ask, _)) => self.sidecars.transfer(ask).await,
            None => Err(SidecarError::Abandoned),
        };
        let Some((ask, blocks)) = asked.owed.take() else {
            return Err(PullFailed { error: SidecarError::Abandoned, blocks: None });
        };
        match answered {
            Ok(LandedAnswer { receipt, collect_by, spent }) => {
                blocks.read();
                let unseen = asked_at.elapsed().saturating_sub(spent);
                let stale = ask.is_stale(unseen);
                // The receipt is the first claim, and it was given after it was asked for. Dropped, it gives the slots back.
                let claimed = Claimed::new(self, ask.sidecar, receipt.transfer.clone(), collect_by, asked_at);
                if stale {
                    let error = SidecarError::Stale { age: ask.prefill_done_age, unseen };
                    return Err(PullFailed { error, blocks: None });
                }
                Ok(Landed { receipt, claimed })
            }
            Err(error) if error.may_be_running() => {
                self.settle_unclear(ask, blocks);
                Err(PullFailed { error, blocks: None })
            }
            Err(error) => Err(PullFailed { error, blocks: Some(blocks) }),
        }
    }

    /// Ends a transfer whose name is not known yet.
    async fn cancel(&self, ask: &TransferAsk) -> Option<bool> {
        let named = self.sidecars.name_of(ask).await;
        let ended = match &named {
            Ok(transfer) => self.sidecars.finish(&ask.sidecar, transfer).await,
            // The attempt has ended already, and this is the answer to it. Who was not let in, came too slowly or found the queue full has
            // not been answered about the attempt at all.
            Err(SidecarError::Problem { status, .. })
                if status.is_client_error()
                    && !matches!(
                        *status,
                        StatusCode::UNAUTHORIZED | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    ) =>
            {
                Ok(false)
            }
            Err(_) => return None,
        };
        match ended {
            Ok(landed) => Some(landed),
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "transfer is not cancelled; its sidecar will give it up"
                );
                None
            }
        }
    }

    /// After an answer that was lost or not waited for: ends the transfer if there is one, then knows what becomes of the blocks.
    fn settle_unclear(&self, ask: TransferAsk, blocks: PinnedBlocks) {
        // Who drops a request outside of the runtime ends the process: nothing can be told any more, leases and claims lapse.
        let Ok(runtime) = Handle::try_current() else { return };
        let this = self.clone();
        let settled = async move {
            match this.cancel(&ask).await {
                Some(false) => drop(blocks),
                Some(true) => blocks.read(),
                None => blocks.leave_to_lease(),
            }
        };
        self.tasks.spawn_on(settled, &runtime);
    }
}

async fn finish(sidecars: &Sidecars, sidecar: &Uri, transfer: &TransferId) {
    for tries_left in (0..TRIES).rev() {
        match sidecars.finish(sidecar, transfer).await {
            Ok(_) => return,
            Err(error) if tries_left == 0 => {
                warn!(%transfer, error = &error as &dyn std::error::Error, "transfer is not finished; its claim will lapse");
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn release(sidecars: &Sidecars, sidecar: &Uri, rank: DpRank, request: &EngineRequestId, why: LetGo) {
    for tries_left in (0..TRIES).rev() {
        match sidecars.release_handle(sidecar, rank, request, why).await {
            Ok(()) => return,
            // The sidecar knows better: unknown, or told already.
            Err(SidecarError::Problem { .. }) => return,
            Err(error) if tries_left == 0 => {
                warn!(%request, ?why, error = &error as &dyn std::error::Error, "prefill is not let go; its lease will end");
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

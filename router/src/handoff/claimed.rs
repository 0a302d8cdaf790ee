//! A landed transfer: its claim is renewed while the request waits for D, and its end is told.

use std::pin::pin;
use std::time::Duration;

use http::{StatusCode, Uri};
use kv::ids::TransferId;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::Handoffs;
use super::endings::Endings;
use crate::sidecar::{SidecarError, Sidecars};

/// Claims are never renewed more often.
const MIN_CLAIM_EVERY: Duration = Duration::from_millis(20);

/// A landed transfer. Dropped: the sidecar is told that its decode leg has ended. Boxed, as an answer under way carries it to its end.
#[derive(Debug)]
pub(crate) struct Claimed(Box<Claim>);

#[derive(Debug)]
struct Claim {
    sidecars: Sidecars,
    endings: Endings,
    sidecar: Uri,
    transfer: TransferId,
    /// How long one claim lasts.
    lasts: Duration,
    /// Until when the sidecar certainly keeps the slots: each renewal counts from when it was sent.
    held_until: Instant,
    /// When the claim is to be renewed; not at all once the sidecar has said that there is nothing to claim.
    next: Option<Instant>,
}

/// Staging may have been freed before D had read it: what D answers may come from another request's blocks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotHeld {
    /// The sidecar freed it unread.
    #[error("staging was freed before it was collected")]
    Freed,
    /// The sidecar does not say.
    #[error("ask whether staging was collected in time")]
    Unknown(#[source] SidecarError),
}

impl Claimed {
    /// A transfer that has landed, whose first claim was asked for at `asked_at`.
    pub(super) fn new(
        handoffs: &Handoffs,
        sidecar: Uri,
        transfer: TransferId,
        lasts: Duration,
        asked_at: Instant,
    ) -> Self {
        Self(Box::new(Claim {
            sidecars: handoffs.sidecars.clone(),
            endings: handoffs.endings.clone(),
            sidecar,
            transfer,
            lasts,
            held_until: asked_at + lasts,
            next: Some(Instant::now() + every(lasts)),
        }))
    }

    /// Waits for the work, and renews the claim meanwhile.
    ///
    /// # Cancel safety
    /// As the work's.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        while let Some(next) = self.0.next {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep_until(next) => {}
            }
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.0.renew() => {}
            }
        }
        work.await
    }

    /// Whether D, which has begun to answer, read its KV while the slots were its. Router, sidecar and machine may stall longer
    /// than a claim lasts; then a sidecar frees what a decode is still to read, and only the sidecar knows what came first.
    pub(crate) async fn was_held(&self) -> Result<(), NotHeld> {
        let Claim { sidecars, sidecar, transfer, held_until, .. } = &*self.0;
        if Instant::now() < *held_until {
            return Ok(());
        }
        match sidecars.was_held(sidecar, transfer).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotHeld::Freed),
            Err(error) => Err(NotHeld::Unknown(error)),
        }
    }
}

impl Claim {
    async fn renew(&mut self) {
        let sent_at = Instant::now();
        // Boxed: most requests never come here.
        let renewed = Box::pin(self.sidecars.claim(&self.sidecar, &self.transfer)).await;
        self.next = Some(Instant::now() + every(self.lasts));
        match renewed {
            Ok(()) => self.held_until = sent_at + self.lasts,
            Err(error) => {
                // D has collected it, or it is gone: neither changes any more.
                if let SidecarError::Problem { status: StatusCode::CONFLICT | StatusCode::NOT_FOUND, .. } = error {
                    self.next = None;
                }
                let (transfer, error) = (&self.transfer, &error as &dyn std::error::Error);
                debug!(%transfer, error, "claim is not renewed");
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.endings.tell(&self.sidecar, &self.transfer);
    }
}

fn every(lasts: Duration) -> Duration {
    (lasts / 3).max(MIN_CLAIM_EVERY)
}

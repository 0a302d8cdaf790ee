//! Notifications to P's workers: heartbeats, each sent once, and the word that blocks are free, sent until it is out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nixl::{AgentName, Fabric, FabricError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long handing over one notification may take.
const TELL_WITHIN: Duration = Duration::from_secs(5);
/// The first pause before a notification is sent again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A worker of P, with the agent of ours that talks to it.
pub(crate) type Line = (Arc<dyn Fabric>, AgentName);

/// Sends one message to workers; returns how many could not be told.
pub(crate) async fn notify_all(to: &[Line], message: &Bytes) -> u64 {
    count(send(to.to_vec(), message).await.len())
}

/// Who is still to be told that blocks are free.
#[derive(Debug)]
pub(crate) struct Telling {
    /// Workers that have not been told.
    pub to: Vec<Line>,
    /// What they are told.
    pub message: Bytes,
    /// When P frees the blocks by itself.
    pub until: Instant,
    /// Cancelled: the process ends.
    pub stop: CancellationToken,
    /// Workers that may have been told or cannot be any more.
    pub lost: u64,
}

impl Telling {
    /// Tells everyone who has not been told.
    pub(crate) async fn once(&mut self) {
        for (line, error) in send(std::mem::take(&mut self.to), &self.message).await {
            if certainly_unsent(&error) {
                self.to.push(line);
            } else {
                self.lost = self.lost.saturating_add(1);
            }
        }
    }

    /// Tells everyone, again where it failed, for as long as it is of use. Returns how many could not be told.
    pub(crate) async fn all(mut self) -> u64 {
        let mut pause = FIRST_PAUSE;
        self.once().await;
        while !self.to.is_empty() && Instant::now() + pause < self.until {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => break,
            }
            self.once().await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
        self.lost.saturating_add(count(self.to.len()))
    }
}

/// Whether a notification certainly has not left, and another one may. What may have left is not sent twice.
fn certainly_unsent(error: &FabricError) -> bool {
    match error {
        // A peer is unknown while its metadata is dropped and loaded anew.
        FabricError::Busy | FabricError::UnknownPeer(_) | FabricError::Nixl(_) => true,
        FabricError::Closed
        | FabricError::Lost
        | FabricError::Abandoned
        | FabricError::Metadata
        | FabricError::Descs(_)
        | FabricError::Memory(_)
        | FabricError::Transfer(_) => false,
    }
}

/// Returns whom the message could not be sent to, and why.
async fn send(to: Vec<Line>, message: &Bytes) -> Vec<(Line, FabricError)> {
    let sending: Vec<_> = to.iter().map(|(fabric, agent)| fabric.notify(agent.clone(), message.clone())).collect();
    let until = Instant::now() + TELL_WITHIN;
    let mut failed = Vec::new();
    for (sending, line) in sending.into_iter().zip(to) {
        let sent = tokio::time::timeout_at(until, sending).await.unwrap_or(Err(FabricError::Lost));
        if let Err(error) = sent {
            tracing::warn!(%error, agent = %line.1, "notification not sent");
            failed.push((line, error));
        }
    }
    failed
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

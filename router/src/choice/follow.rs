//! Follows the KV events of one rank's engine: live ones, and those before, if the engine repeats them. What may have been missed
//! makes the rank's blocks unknown again, so that nothing is believed that no longer holds.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::LocalRank;
use parking_lot::Mutex;
use side_channel::{AskError, Endpoint, Numbered, Replay, Subscription};
use tokio::time::sleep;
use tracing::{debug, info, warn};
use vllm_wire::kv_events::{MAX_PAYLOAD, read_events};

use super::held_blocks::HeldBlocks;
use super::prefixes::Holder;
use crate::targets::Pod;

/// Longest wait for a connection, and for each repeated message.
const DEADLINE: Duration = Duration::from_secs(5);
/// Wait before the first reconnection; doubled up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// How often it is looked whether a rank is ready.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where engines publish: the ports of rank 0; each further rank has the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) events: u16,
    pub(crate) replay: Option<u16>,
}

/// Follows one rank until its pod's `stop`.
pub(super) async fn follow(pod: Arc<Pod>, local: LocalRank, ports: Ports, held: Arc<Mutex<HeldBlocks>>) {
    let stop = pod.stop.clone();
    let (mut backoff, mut lost) = (MIN_BACKOFF, false);
    loop {
        // Before that the rank's number, and so its port, is not certain.
        let ready = async {
            while !pod.ranks.get(usize::from(local.0)).is_some_and(crate::targets::Rank::is_ready) {
                sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! { () = stop.cancelled() => return, () = ready => {} }
        let Some(rank) = pod.ranks.get(usize::from(local.0)) else { return };
        let holder = (pod.id.index, rank.number());
        let Some(follower) = Follower::new(&pod, holder, ports, &held) else {
            warn!(pod = %pod.id, rank = %holder.1, "there is no port for this rank's KV events");
            return;
        };
        let ended = tokio::select! {
            () = stop.cancelled() => None,
            ended = follower.run(&mut lost, &mut backoff) => Some(ended),
        };
        held.lock().forget(holder);
        let Some(error) = ended else { return };
        if !lost {
            warn!(pod = %pod.id, rank = %holder.1, error = &error as &dyn std::error::Error, "KV events are not heard");
        }
        lost = true;
        tokio::select! { () = stop.cancelled() => return, () = sleep(backoff) => {} }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// One connection.
struct Follower<'a> {
    pod: &'a Pod,
    holder: Holder,
    live: Endpoint,
    replay: Option<Endpoint>,
    held: &'a Mutex<HeldBlocks>,
}

impl<'a> Follower<'a> {
    fn new(pod: &'a Pod, holder: Holder, ports: Ports, held: &'a Mutex<HeldBlocks>) -> Option<Self> {
        let host = pod.engine.host()?.trim_start_matches('[').trim_end_matches(']');
        let at = |port: u16| Some(Endpoint::new(host, port.checked_add(holder.1.0)?));
        let replay = match ports.replay {
            Some(port) => Some(at(port)?),
            None => None,
        };
        Some(Self { pod, holder, live: at(ports.events)?, replay, held })
    }

    /// Until the connection ends.
    async fn run(&self, lost: &mut bool, backoff: &mut Duration) -> AskError {
        match self.connected(lost, backoff).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn connected(&self, lost: &mut bool, backoff: &mut Duration) -> Result<std::convert::Infallible, AskError> {
        let bytes = u64::try_from(MAX_PAYLOAD).unwrap_or(u64::MAX);
        // Live first: what is published meanwhile waits in the connection, so nothing falls between the two.
        let mut live = Subscription::open(&self.live, bytes, DEADLINE).await?;
        let mut next = match &self.replay {
            Some(from) => self.catch_up(from, 0).await?,
            None => None,
        };
        if *lost {
            info!(pod = %self.pod.id, rank = %self.holder.1, "KV events are heard again");
        }
        (*lost, *backoff) = (false, MIN_BACKOFF);
        loop {
            let message = live.next().await?;
            if let Some(expected) = next.filter(|expected| message.number > *expected) {
                debug!(pod = %self.pod.id, rank = %self.holder.1, expected, got = message.number, "KV events were missed");
                next = match &self.replay {
                    Some(from) => self.catch_up(from, expected).await?,
                    None => None,
                };
                if next.is_none_or(|next| next < message.number) {
                    self.held.lock().forget(self.holder);
                }
            }
            // Repeated ones come again live.
            if next.is_none_or(|next| message.number >= next) {
                self.apply(&message);
                next = Some(message.number.wrapping_add(1));
            }
        }
    }

    /// Takes in what the engine repeats from a number on; the number after the last one. What it no longer has makes the rank's
    /// blocks unknown.
    async fn catch_up(&self, replay: &Endpoint, from: u64) -> Result<Option<u64>, AskError> {
        let bytes = u64::try_from(MAX_PAYLOAD).unwrap_or(u64::MAX);
        let mut repeated = Replay::open(replay, from, bytes, DEADLINE).await?;
        let mut next = None;
        while let Some(message) = repeated.next().await? {
            if message.number != next.unwrap_or(from) {
                self.held.lock().forget(self.holder);
            }
            self.apply(&message);
            next = Some(message.number.wrapping_add(1));
        }
        Ok(next)
    }

    fn apply(&self, message: &Numbered) {
        match read_events(&message.payload) {
            Ok(events) => {
                let mut held = self.held.lock();
                events.iter().for_each(|event| held.apply(self.holder, event));
            }
            Err(error) => {
                warn!(pod = %self.pod.id, error = &error as &dyn std::error::Error, "KV events are not understood");
                self.held.lock().forget(self.holder);
            }
        }
    }
}

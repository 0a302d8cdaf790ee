//! Peers and their notifications.

use std::ffi::CString;

use tokio::sync::mpsc::error::TrySendError;

use super::{Driver, c_name, interval};
use crate::{
    AgentName, FabricError,
    agent::clock,
    fabric::{Attention, Notification},
    pending::Answer,
};

impl Driver {
    pub(super) fn load_peer(&mut self, blob: &[u8]) -> Result<AgentName, FabricError> {
        let name = self.raw.load_peer(blob)?;
        let name = name.to_str().ok().and_then(|name| AgentName::new(name).ok()).ok_or(FabricError::Metadata)?;
        self.peers.insert(name.clone());
        Ok(name)
    }

    pub(super) fn forget_peer(&mut self, peer: AgentName, answer: Answer<()>) {
        if self.peers.remove(&peer) {
            self.forgetting.push((peer, answer));
        } else {
            answer.send(Err(FabricError::UnknownPeer(peer)));
        }
    }

    /// A peer's metadata may only go when nothing that was made from it is left.
    pub(super) fn forget_idle_peers(&mut self) {
        for (peer, answer) in std::mem::take(&mut self.forgetting) {
            if self.transfers.use_peer(&peer) {
                self.forgetting.push((peer, answer));
                continue;
            }
            self.drop_prepared_of(&peer);
            let forgotten = if self.peers.contains(&peer) {
                // Loaded anew in the meantime: the new metadata has taken the old one's place.
                Ok(())
            } else {
                self.raw.forget_peer(&c_name(&peer)).map_err(FabricError::Nixl)
            };
            answer.send(forgotten);
        }
    }

    pub(super) fn known(&self, peer: &AgentName) -> Result<CString, FabricError> {
        if self.peers.contains(peer) { Ok(c_name(peer)) } else { Err(FabricError::UnknownPeer(peer.clone())) }
    }

    pub(super) fn notify(&mut self, peer: &AgentName, message: &[u8]) -> Result<(), FabricError> {
        self.raw.notify(&self.known(peer)?, message)?;
        self.sent = Some(clock::now());
        Ok(())
    }

    /// Asks when it is time to, or when a notification of ours may still have to be pushed out.
    pub(super) fn ask_for_notifications(&mut self, attention: Option<Attention>) {
        while let Some(next) = self.backlog.pop_front() {
            match self.stream.try_send(next) {
                Ok(()) | Err(TrySendError::Closed(_)) => {}
                Err(TrySendError::Full(next)) => {
                    self.backlog.push_front(next);
                    break;
                }
            }
        }
        let now = clock::now();
        let due = attention.is_some_and(|attention| {
            self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= interval(attention))
        });
        // While the stream is full, what comes in waits inside NIXL; with nothing to push out there is no need to call it.
        if self.sent.is_none() && (!due || !self.backlog.is_empty()) {
            return;
        }
        self.asked = Some(now);
        // An error here is one of the next call too, and concerns no command: the peer's lease or deadline decides.
        for (from, message) in self.raw.notifications().unwrap_or_default() {
            if let Some(from) = from.to_str().ok().and_then(|from| AgentName::new(from).ok()) {
                self.backlog.push_back(Notification { from, message });
            }
        }
        while let Some(next) = self.backlog.pop_front() {
            if let Err(TrySendError::Full(next)) = self.stream.try_send(next) {
                self.backlog.push_front(next);
                break;
            }
        }
    }
}

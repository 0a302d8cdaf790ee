//! Getting to know the remote engines that transfers read from.

use std::sync::Arc;

use kv::ids::{EngineId, TransferId};
use kv::transfer::{Event as E, Failure, State};
use side_channel::Endpoint;
use tokio::time::Instant;

use super::jobs::PeerAnswer;
use super::stage::Stage;
use super::{Rank, jobs};
use crate::model::counters::add;
use crate::model::{Contact, ParamsProblem, TransferError};
use crate::peers::{Asked, Handshake, Lookup, Peer};

impl Rank {
    /// Looks the peer up and asks it if nobody has; on a known one, heartbeats begin.
    pub(super) fn connect(&mut self, transfer: &TransferId) {
        let Some(stage) = &mut self.stage else { return };
        let Some(active) = stage.active.get(transfer) else { return };
        let engine = active.params.remote_engine_id.clone();
        match stage.peers.look_up(&engine, transfer, Instant::now()) {
            Lookup::Known(peer) => self.peer_known(transfer, peer),
            Lookup::Wait => self.note_contact(transfer, Contact::Waited),
            Lookup::Ask(stale) => {
                let handshake = Handshake {
                    side_channel: Arc::clone(&self.shared.side_channel),
                    endpoint: Endpoint::new(active.params.remote_host.clone(), active.params.remote_port),
                    allow: self.shared.config.peers.clone(),
                    engine,
                    stale,
                    asked: Asked { session: stage.id().clone(), generation: stage.generation },
                    hash: stage.session.identity.hash.clone(),
                    version: stage.session.identity.version,
                    layouts: stage.session.shards.iter().map(|shard| Arc::clone(&shard.engine)).collect(),
                    pull: stage.session.shards.iter().map(|shard| Arc::clone(&shard.pull.fabric)).collect(),
                };
                self.shared.tasks.spawn(jobs::shake_hands(handshake, self.events.clone()));
                self.note_contact(transfer, Contact::Asked);
            }
        }
    }

    fn note_contact(&mut self, transfer: &TransferId, contact: Contact) {
        // What has landed looks for the peer to tell it so; how it was read does not change by that.
        if self.records.get(transfer).is_some_and(|shown| shown.virtual_request.is_none()) {
            self.records.change(transfer, |shown| shown.facts_mut().contact = contact);
        }
    }

    pub(super) fn on_peer(&mut self, by: &Asked, engine: &EngineId, answered: PeerAnswer) {
        let PeerAnswer { answer, endpoint, took } = answered;
        self.shared.known_peers.answered(self.own.dp_rank, engine, &endpoint, took, answer.as_deref());
        let current = |stage: &&mut Stage| stage.id() == &by.session && stage.generation == by.generation;
        let Some(stage) = self.stage.as_mut().filter(current) else { return };
        let waiting = stage.peers.answered(engine, answer.as_ref().ok().cloned(), Instant::now());
        let evicted = stage.peers.evict();
        match answer {
            Ok(peer) => {
                add(&self.shared.counters.handshakes, 1);
                for transfer in waiting {
                    self.peer_known(&transfer, Arc::clone(&peer));
                }
            }
            Err(error) => {
                add(&self.shared.counters.handshakes_failed, 1);
                tracing::warn!(dp_rank = %self.own.dp_rank, peer = %engine, %error, code = error.code().as_str(), "handshake failed");
                for transfer in waiting {
                    self.peer_failed(&transfer, error.clone());
                }
            }
        }
        if let Some(peer) = evicted {
            self.drop_peer(&peer);
        }
    }

    fn peer_known(&mut self, transfer: &TransferId, peer: Arc<Peer>) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        if matches!(active.state, State::Landed { .. }) {
            active.peer = Some(peer);
            return self.tell(transfer);
        }
        // A read goes on by the agents that it was begun with.
        if !matches!(active.state, State::Queued(_) | State::AwaitingPeer(_)) {
            return;
        }
        let pool = peer.blocks();
        let listed = active.params.remote_block_ids.groups().iter().flat_map(|group| group.ids());
        if let Some(block) = listed.copied().find(|block| block.0 >= pool) {
            let problem = ParamsProblem::BlockOutOfRange { block, pool };
            return self.peer_failed(transfer, TransferError::ParamsInvalid(problem));
        }
        active.peer = Some(peer);
        self.beat(transfer);
        self.drive(transfer, E::PeerReady);
    }

    fn peer_failed(&mut self, transfer: &TransferId, error: TransferError) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        if matches!(active.state, State::Landed { .. }) {
            return self.not_told(transfer);
        }
        active.error = Some(error);
        let event = if matches!(active.state, State::Queued(_)) { E::Cancel(Failure::Peer) } else { E::PeerFailed };
        self.drive(transfer, event);
    }

    /// A read failed: the next transfer asks again who is there.
    pub(super) fn forget_peer_of(&mut self, transfer: &TransferId) {
        let (engine, _) = self.source_of(transfer);
        if self.stage.as_mut().is_some_and(|stage| stage.peers.distrust(&engine)) {
            tracing::info!(dp_rank = %self.own.dp_rank, peer = %engine, "peer will be asked again after a failed read");
        }
    }

    fn drop_peer(&self, peer: &Peer) {
        let Some(stage) = &self.stage else { return };
        let in_use =
            stage.active.values().any(|active| active.peer.as_ref().is_some_and(|used| std::ptr::eq(&**used, peer)));
        if !in_use {
            for (fabric, agent) in peer.lines() {
                self.shared.tasks.spawn(async move {
                    if let Err(error) = fabric.forget_peer(agent.clone()).await {
                        tracing::debug!(%error, %agent, "peer's metadata not dropped");
                    }
                });
            }
        }
    }
}

//! Prepared lists.

use super::{Driver, refuse};
use crate::{
    AgentName, FabricError, LocalDescs, RemoteDescs,
    agent::{
        inbox::ReadAnswers,
        prepared::{PreparedLocal, PreparedRead, PreparedRemote},
        transfers::{Pins, Start},
    },
    error::DescError,
};

impl Driver {
    pub(super) fn prepare_local(&mut self, descs: LocalDescs) -> Result<PreparedLocal, FabricError> {
        if descs.owner() != self.owner {
            return Err(DescError::ForeignRegion.into());
        }
        let list = self.raw.prepare_local(&descs)?;
        let key = self.key();
        self.prepared.insert(key, (list, None));
        Ok(PreparedLocal::new(self.owner, key, &self.inbox, descs))
    }

    pub(super) fn prepare_remote(
        &mut self,
        peer: AgentName,
        descs: RemoteDescs,
    ) -> Result<PreparedRemote, FabricError> {
        let list = self.raw.prepare_remote(&self.known(&peer)?, &descs)?;
        let key = self.key();
        self.prepared.insert(key, (list, Some(peer.clone())));
        Ok(PreparedRemote::new(self.owner, key, &self.inbox, peer, descs))
    }

    pub(super) fn read_prepared(&mut self, read: PreparedRead, answers: ReadAnswers) {
        let made = self.room().and_then(|()| {
            let indices = read.check(self.owner)?;
            let unknown = || FabricError::UnknownPeer(read.remote.peer().clone());
            self.known(read.remote.peer())?;
            let local = self.prepared.get(&read.local.key()).ok_or_else(unknown)?;
            let remote = self.prepared.get(&read.remote.key()).ok_or_else(unknown)?;
            let sides = ((&local.0, indices.local.as_slice()), (&remote.0, indices.remote.as_slice()));
            Ok((self.raw.make_read(sides.0, sides.1, read.notify.as_deref())?, indices.bytes))
        });
        match made {
            Ok((request, bytes)) => {
                let (peer, descs) = (read.remote.peer().clone(), read.pairs.len());
                let notifying = read.notify.is_some();
                let pins = Pins::Prepared { _local: read.local, _remote: read.remote };
                self.start(Start { request, pins, peer, bytes, descs, notifying, answers });
            }
            Err(error) => refuse(answers, error),
        }
    }

    pub(super) fn drop_prepared(&mut self, key: u64) {
        let Some((list, _peer)) = self.prepared.remove(&key) else { return };
        if self.raw.release_prepared(list).is_err() {
            self.transfers.cleanup_failed();
        }
    }

    pub(super) fn drop_prepared_of(&mut self, peer: &AgentName) {
        let of_peer = |(_, owner): &&(_, Option<AgentName>)| owner.as_ref() == Some(peer);
        let keys: Vec<u64> = self.prepared.iter().filter(|(_, entry)| of_peer(entry)).map(|(key, _)| *key).collect();
        for key in keys {
            self.drop_prepared(key);
        }
    }
}

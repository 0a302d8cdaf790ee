//! Lists that NIXL looks up once and that many reads then use by index. They merge neighbours by themselves, which made 8192
//! blocks of 32 KiB as fast as 128 of 2 MiB (nixl-ffi.md §3.3).

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::inbox::{Inbox, Retired};
use crate::{
    descs::{LocalDescs, RemoteDescs},
    error::DescError,
    name::AgentName,
    region::Owner,
};

/// Our side of reads to come. Cloning shares it; keeps its region alive.
#[derive(Clone, Debug)]
pub struct PreparedLocal(Arc<Local>);

/// A peer's side of reads to come. Cloning shares it. Useless once the peer is forgotten.
#[derive(Clone, Debug)]
pub struct PreparedRemote(Arc<Remote>);

/// A read of some entries of prepared lists.
#[derive(Clone, Debug)]
pub struct PreparedRead {
    /// Where the bytes go.
    pub local: PreparedLocal,
    /// Where they come from.
    pub remote: PreparedRemote,
    /// Pairs of positions: `(in local, in remote)`.
    pub pairs: Vec<(usize, usize)>,
    /// Sent to the peer once the bytes have been read.
    pub notify: Option<Bytes>,
}

// Field order is drop order: the list is retired before its region may be.
#[derive(Debug)]
struct Local {
    handle: Handle,
    descs: LocalDescs,
}

#[derive(Debug)]
struct Remote {
    handle: Handle,
    peer: AgentName,
    descs: RemoteDescs,
}

#[derive(Debug)]
struct Handle {
    owner: Owner,
    key: u64,
    inbox: Weak<Inbox>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(inbox) = self.inbox.upgrade() {
            inbox.retire(Retired::Prepared(self.key));
        }
    }
}

/// Indices as NIXL takes them, and the bytes of all pairs together.
pub(super) struct Indices {
    pub(super) local: Vec<i32>,
    pub(super) remote: Vec<i32>,
    pub(super) bytes: u64,
}

impl PreparedLocal {
    pub(super) fn new(owner: Owner, key: u64, inbox: &Arc<Inbox>, descs: LocalDescs) -> Self {
        Self(Arc::new(Local { handle: Handle { owner, key, inbox: Arc::downgrade(inbox) }, descs }))
    }

    pub(super) fn key(&self) -> u64 {
        self.0.handle.key
    }

    /// Its entries.
    #[must_use]
    pub fn descs(&self) -> &LocalDescs {
        &self.0.descs
    }
}

impl PreparedRemote {
    pub(super) fn new(owner: Owner, key: u64, inbox: &Arc<Inbox>, peer: AgentName, descs: RemoteDescs) -> Self {
        Self(Arc::new(Remote { handle: Handle { owner, key, inbox: Arc::downgrade(inbox) }, peer, descs }))
    }

    pub(super) fn key(&self) -> u64 {
        self.0.handle.key
    }

    /// Whose memory it is.
    #[must_use]
    pub fn peer(&self) -> &AgentName {
        &self.0.peer
    }

    /// Its entries.
    #[must_use]
    pub fn descs(&self) -> &RemoteDescs {
        &self.0.descs
    }
}

impl PreparedRead {
    /// Shows that both lists belong to `owner` and that the pairs are in range and of equal length.
    pub(super) fn check(&self, owner: Owner) -> Result<Indices, DescError> {
        if self.local.0.handle.owner != owner || self.remote.0.handle.owner != owner {
            return Err(DescError::ForeignRegion);
        }
        if self.pairs.is_empty() {
            return Err(DescError::Empty);
        }
        let mut indices = Indices { local: Vec::new(), remote: Vec::new(), bytes: 0 };
        for (index, &(here, there)) in self.pairs.iter().enumerate() {
            let (local, at) = entry(self.local.descs().entries(), here)?;
            indices.local.push(at);
            let (remote, at) = entry(self.remote.descs().entries(), there)?;
            indices.remote.push(at);
            if local != remote {
                return Err(DescError::Length { index, local, remote });
            }
            indices.bytes = indices.bytes.saturating_add(local);
        }
        Ok(indices)
    }
}

/// Length of an entry, and its position as NIXL takes it.
fn entry(entries: &[(u64, u64)], index: usize) -> Result<(u64, i32), DescError> {
    let refused = DescError::Index { index, len: entries.len() };
    let len = entries.get(index).ok_or(refused)?.1;
    Ok((len, i32::try_from(index).map_err(|_| refused)?))
}

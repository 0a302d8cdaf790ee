//! A fabric inside one process: a read is a `memcpy` that has ended when [`Fabric::read`] returns. No threads, no timers, so
//! it works the same under paused tokio time. It keeps NIXL's rules: a peer must be loaded, and only what was registered when
//! its blob was made can be read.

mod blob;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    descs::check_pair,
    error::{FabricError, NixlError, StatusKind},
    fabric::{Attention, Closed, Fabric, FabricStats, Notification, Read, ReadDone, Reading},
    memory::Memory,
    name::AgentName,
    pending::Pending,
    region::{Owner, Region, Registration},
};

/// Notifications that an agent holds for its reader.
const NOTIFICATIONS: usize = 4096;

/// What NIXL answers when an address is not in the loaded metadata.
const UNKNOWN_ADDRESS: NixlError =
    NixlError { call: "nixl_capi_create_xfer_req", code: -6, kind: StatusKind::NotFound };
/// What NIXL answers when a peer's memory or the peer itself is gone.
const GONE: FabricError =
    FabricError::Transfer(NixlError { call: "nixl_capi_get_xfer_status", code: -2, kind: StatusKind::Backend });

/// Agents that can reach one another. Cloning shares the net.
#[derive(Clone, Default)]
pub struct LoopbackNet(Arc<Mutex<BTreeMap<AgentName, Weak<Agent>>>>);

/// One agent on a [`LoopbackNet`].
pub struct LoopbackFabric {
    net: LoopbackNet,
    agent: Arc<Agent>,
}

struct Agent {
    name: AgentName,
    owner: Owner,
    inner: Arc<Mutex<Inner>>,
    notify: mpsc::Sender<Notification>,
    notifications: Mutex<Option<mpsc::Receiver<Notification>>>,
}

#[derive(Default)]
struct Inner {
    closed: bool,
    next: u64,
    registered: BTreeMap<u64, Memory>,
    /// What each loaded peer's blobs say may be read, as `(start, end)` addresses.
    peers: BTreeMap<AgentName, Vec<(u64, u64)>>,
}

struct Registered {
    inner: Weak<Mutex<Inner>>,
    key: u64,
}

impl Registration for Registered {}

impl Drop for Registered {
    fn drop(&mut self) {
        let memory = self.inner.upgrade().and_then(|inner| inner.lock().registered.remove(&self.key));
        drop(memory);
    }
}

impl LoopbackNet {
    /// A net without agents.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an agent. A second one of the same name takes the place of the first, as a restarted process does.
    #[must_use]
    pub fn agent(&self, name: AgentName) -> Arc<LoopbackFabric> {
        let (notify, notifications) = mpsc::channel(NOTIFICATIONS);
        let agent = Arc::new(Agent {
            name: name.clone(),
            owner: Owner::next(),
            inner: Arc::default(),
            notify,
            notifications: Mutex::new(Some(notifications)),
        });
        self.0.lock().insert(name, Arc::downgrade(&agent));
        Arc::new(LoopbackFabric { net: self.clone(), agent })
    }

    fn find(&self, name: &AgentName) -> Option<Arc<Agent>> {
        self.0.lock().get(name).and_then(Weak::upgrade).filter(|agent| !agent.inner.lock().closed)
    }
}

impl LoopbackFabric {
    fn open<T>(&self, act: impl FnOnce(&mut Inner) -> Result<T, FabricError>) -> Result<T, FabricError> {
        let mut inner = self.agent.inner.lock();
        if inner.closed { Err(FabricError::Closed) } else { act(&mut inner) }
    }

    fn move_bytes(&self, read: &Read) -> Result<ReadDone, FabricError> {
        check_pair(self.agent.owner, &read.local, &read.remote)?;
        let loaded = self.open(|inner| {
            inner.peers.get(&read.peer).cloned().ok_or_else(|| FabricError::UnknownPeer(read.peer.clone()))
        })?;
        let known = |&(addr, len): &(u64, u64)| {
            loaded.iter().any(|&(start, end)| start <= addr && addr.saturating_add(len) <= end)
        };
        if !read.remote.entries().iter().all(known) {
            return Err(UNKNOWN_ADDRESS.into());
        }
        let peer = self.net.find(&read.peer).ok_or(GONE)?;
        let memories: Vec<Memory> = peer.inner.lock().registered.values().cloned().collect();
        for (&(offset, len), &(addr, _)) in read.local.entries().iter().zip(read.remote.entries()) {
            let holds = |memory: &&Memory| {
                memory.base() <= addr && addr.saturating_add(len) <= memory.base().saturating_add(memory.len())
            };
            let source = memories.iter().find(holds).ok_or(GONE)?;
            let target = read.local.region().memory();
            target.copy_from(offset, source, addr - source.base(), len).map_err(|_| GONE)?;
        }
        if let Some(message) = &read.notify {
            self.deliver(&peer, message.clone()).map_err(|_| GONE)?;
        }
        Ok(ReadDone {
            bytes: read.local.bytes(),
            descs: read.local.entries().len(),
            post: Duration::ZERO,
            wire: Duration::ZERO,
        })
    }

    fn deliver(&self, peer: &Agent, message: Bytes) -> Result<(), FabricError> {
        let from = self.agent.name.clone();
        peer.notify.try_send(Notification { from, message }).map_err(|_| FabricError::Busy)
    }
}

impl Fabric for LoopbackFabric {
    fn name(&self) -> &AgentName {
        &self.agent.name
    }

    fn register(&self, memory: Memory) -> Pending<Region> {
        Pending::ready(self.open(|inner| {
            let key = inner.next;
            inner.next += 1;
            inner.registered.insert(key, memory.clone());
            let registered = Registered { inner: Arc::downgrade(&self.agent.inner), key };
            Ok(Region::new(self.agent.owner, memory, registered))
        }))
    }

    fn local_metadata(&self) -> Pending<Bytes> {
        Pending::ready(self.open(|inner| {
            let ranges = inner.registered.values().map(|memory| (memory.base(), memory.base() + memory.len()));
            Ok(blob::encode(&self.agent.name, ranges))
        }))
    }

    fn load_peer(&self, metadata: Bytes) -> Pending<AgentName> {
        Pending::ready(self.open(|inner| {
            let (name, ranges) = blob::decode(&metadata).ok_or(FabricError::Metadata)?;
            inner.peers.entry(name.clone()).or_default().extend(ranges);
            Ok(name)
        }))
    }

    fn forget_peer(&self, peer: AgentName) -> Pending<()> {
        Pending::ready(self.open(|inner| inner.peers.remove(&peer).map(drop).ok_or(FabricError::UnknownPeer(peer))))
    }

    fn read(&self, read: Read) -> Reading {
        match self.move_bytes(&read) {
            Ok(done) => Reading { posted: Pending::ready(Ok(())), done: Pending::ready(Ok(done)) },
            Err(error) => Reading { posted: Pending::ready(Err(error.clone())), done: Pending::ready(Err(error)) },
        }
    }

    fn notify(&self, peer: AgentName, message: Bytes) -> Pending<()> {
        let known = self.open(|inner| match inner.peers.contains_key(&peer) {
            true => Ok(()),
            false => Err(FabricError::UnknownPeer(peer.clone())),
        });
        let sent = known.and_then(|()| match self.net.find(&peer) {
            Some(found) => self.deliver(&found, message),
            // As with NIXL, nobody tells the sender that the peer has died.
            None => Ok(()),
        });
        Pending::ready(sent)
    }

    fn take_notifications(&self) -> Option<mpsc::Receiver<Notification>> {
        self.agent.notifications.lock().take()
    }

    fn attention(&self, _attention: Attention) {}

    fn stats(&self) -> FabricStats {
        FabricStats { alive: !self.agent.inner.lock().closed, ..FabricStats::default() }
    }

    fn close(&self, _deadline: Duration) -> Pending<Closed> {
        let mut inner = self.agent.inner.lock();
        inner.closed = true;
        let registered = std::mem::take(&mut inner.registered);
        drop(inner);
        drop(registered);
        Pending::ready(Ok(Closed::Quiet))
    }
}

impl fmt::Debug for LoopbackFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopbackFabric").field("name", &self.agent.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for LoopbackNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopbackNet").finish_non_exhaustive()
    }
}

//! One agent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nixl::error::{NixlError, StatusKind};
use nixl::loopback::LoopbackFabric;
use nixl::{
    AgentName, Answer, Attention, Closed, Fabric, FabricError, FabricStats, LocalDescs, Memory, Notification,
    PeerMemory, Pending, Read, ReadDone, Reading, Region, RemoteDescs,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::World;
use super::fate::{self, NoteFate, ReadFate};
use crate::evidence::Mark;
use crate::hosts::Host;

/// A read is copied in so many pieces at most.
const PIECES: usize = 3;
/// After this time without a way to the peer the transport gives up.
const GIVES_UP: Duration = Duration::from_millis(1_500);
/// Destroying an agent takes so long.
const DESTROY: Duration = Duration::from_millis(40);

const FAILED: FabricError =
    FabricError::Transfer(NixlError { call: "nixl_capi_get_xfer_status", code: -2, kind: StatusKind::Backend });
const REFUSED: FabricError =
    FabricError::Transfer(NixlError { call: "nixl_capi_post_xfer_req", code: -2, kind: StatusKind::Backend });
const UNSENT: FabricError =
    FabricError::Nixl(NixlError { call: "nixl_capi_gen_notif", code: -2, kind: StatusKind::Backend });

pub(super) struct Agent(Arc<Inner>);

struct Inner {
    world: World,
    host: Host,
    net: Arc<LoopbackFabric>,
    peers: Mutex<BTreeSet<AgentName>>,
    /// Reads that have not ended.
    running: TaskTracker,
    /// Everything else that is under way.
    late: TaskTracker,
    in_flight: AtomicU64,
    /// Reads that have failed: what they were to write to stays until the agent is gone, as with a real one.
    buried: Mutex<Vec<LocalDescs>>,
    closing: CancellationToken,
    destroyed: CancellationToken,
}

impl Agent {
    pub(super) fn make(world: World, host: Host, net: Arc<LoopbackFabric>) -> Arc<dyn Fabric> {
        Arc::new(Self(Arc::new(Inner {
            world,
            host,
            net,
            peers: Mutex::default(),
            running: TaskTracker::new(),
            late: TaskTracker::new(),
            in_flight: AtomicU64::new(0),
            buried: Mutex::default(),
            closing: CancellationToken::new(),
            destroyed: CancellationToken::new(),
        })))
    }
}

/// Parts of a read, to be copied one after the other.
fn pieces(read: &Read) -> Vec<Read> {
    let (local, remote) = (read.local.entries(), read.remote.entries());
    let each = local.len().div_ceil(PIECES).max(1);
    let parts = local.chunks(each).zip(remote.chunks(each)).filter_map(|(local, remote)| {
        let ranges = remote.iter().map(|&(at, len)| at..at.saturating_add(len)).collect();
        let memory = PeerMemory { kind: read.remote.kind(), device: read.remote.device(), ranges };
        Some(Read {
            peer: read.peer.clone(),
            local: LocalDescs::new(read.local.region(), local.iter().copied()).ok()?,
            remote: RemoteDescs::new(&memory, remote.iter().copied()).ok()?,
            notify: None,
        })
    });
    parts.collect()
}

impl Inner {
    /// Waits for a way to a peer.
    async fn way_to(&self, peer: Option<Host>) -> bool {
        let Some(peer) = peer else { return true };
        let given_up = Instant::now() + GIVES_UP;
        while self.world.is_cut(self.host, peer) || self.world.is_cut(peer, self.host) {
            if Instant::now() >= given_up {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Copies pieces while the time passes.
    async fn copy(&self, pieces: &[Read], over: Duration) -> Result<(), FabricError> {
        for piece in pieces {
            sleep(over / u32::try_from(pieces.len()).unwrap_or(1).max(1)).await;
            let peer = self.world.host_of(&piece.peer);
            if !self.way_to(peer).await {
                return Err(FAILED);
            }
            self.net.read(piece.clone()).done.await?;
        }
        Ok(())
    }

    async fn carry_out(self: &Arc<Self>, read: Read, fate: ReadFate) -> Result<ReadDone, FabricError> {
        let begun = Instant::now();
        let parts = pieces(&read);
        let half = parts.len() / 2;
        let (first, rest) = parts.split_at(half);
        let (over, late) = match fate {
            ReadFate::Refused => return Err(REFUSED),
            ReadFate::Well(over) => {
                self.copy(&parts, over).await?;
                if let Some(message) = &read.notify {
                    self.send(&read.peer, message.clone());
                }
                let (bytes, descs) = (read.local.bytes(), read.local.entries().len());
                return Ok(ReadDone { bytes, descs, post: Duration::ZERO, wire: begun.elapsed() });
            }
            ReadFate::Breaks { after, late } | ReadFate::Hangs { after, late } => (after, late),
        };
        self.copy(first, over).await?;
        if let Some(late) = late {
            let (this, rest) = (Arc::clone(self), rest.to_vec());
            self.late.spawn(async move {
                let landing = async {
                    sleep(late).await;
                    // Nobody hears of it, however it ends.
                    drop(this.copy(&rest, Duration::ZERO).await);
                };
                tokio::select! {
                    biased;
                    () = this.destroyed.cancelled() => {}
                    () = landing => {}
                }
            });
        }
        match fate {
            ReadFate::Hangs { .. } => std::future::pending().await,
            ReadFate::Breaks { .. } | ReadFate::Well(_) | ReadFate::Refused => Err(FAILED),
        }
    }

    async fn run(self: Arc<Self>, read: Read, fate: ReadFate, write: u64, done: Answer<ReadDone>) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let local = read.local.clone();
        let ended = tokio::select! {
            biased;
            () = self.destroyed.cancelled() => Err(FabricError::Abandoned),
            ended = self.carry_out(read, fate) => ended,
        };
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        match &ended {
            Ok(_) => self.world.0.state.lock().writes.quiet(write),
            Err(error) if error.memory_is_quiet() => self.world.0.state.lock().writes.quiet(write),
            Err(_) => self.buried.lock().push(local),
        }
        done.send(ended);
    }

    /// Sends a notification as the weather has it; whether the sender is told that it is on its way.
    fn send(self: &Arc<Self>, peer: &AgentName, message: Bytes) -> bool {
        let to = self.world.host_of(peer);
        let fate = {
            let mut state = self.world.0.state.lock();
            let weather = state.weather.get(&self.host).copied().unwrap_or_default();
            fate::of_note(&mut state.dice, weather)
        };
        let arrivals = match fate {
            NoteFate::Arrives(takes) => vec![takes],
            NoteFate::Doubled(first, second) => vec![first, first + second],
            NoteFate::Dropped => Vec::new(),
            NoteFate::Refused => {
                self.world.0.evidence.fault(Mark::Note, || format!("{} cannot send to {to:?}", self.host));
                return false;
            }
        };
        if arrivals.len() != 1 {
            self.world.0.evidence.fault(Mark::Note, || format!("{} to {to:?} {fate:?} {message:?}", self.host));
        }
        self.world.0.evidence.sent(self.host, to, peer, &message);
        let (this, peer) = (Arc::clone(self), peer.clone());
        self.late.spawn(async move {
            for takes in arrivals {
                sleep(takes).await;
                if to.is_some_and(|to| this.world.is_cut(this.host, to)) {
                    continue;
                }
                // Whoever is not there any more hears nothing.
                drop(this.net.notify(peer.clone(), message.clone()).await);
            }
        });
        true
    }
}

impl Fabric for Agent {
    fn name(&self) -> &AgentName {
        self.0.net.name()
    }

    fn register(&self, memory: Memory) -> Pending<Region> {
        let place = (memory.base(), memory.len());
        self.0.world.0.evidence.registered(self.0.host, self.0.net.name(), place);
        self.0.net.register(memory)
    }

    fn local_metadata(&self) -> Pending<Bytes> {
        self.0.net.local_metadata()
    }

    fn load_peer(&self, metadata: Bytes) -> Pending<AgentName> {
        let this = Arc::clone(&self.0);
        let loading = self.0.net.load_peer(metadata);
        let (answer, pending) = Pending::pair();
        self.0.late.spawn(async move {
            let loaded = loading.await;
            if let Ok(peer) = &loaded {
                this.peers.lock().insert(peer.clone());
            }
            answer.send(loaded);
        });
        pending
    }

    fn forget_peer(&self, peer: AgentName) -> Pending<()> {
        self.0.peers.lock().remove(&peer);
        self.0.net.forget_peer(peer)
    }

    fn read(&self, read: Read) -> Reading {
        let this = &self.0;
        if this.closing.is_cancelled() {
            let closed = FabricError::Closed;
            return Reading { posted: Pending::ready(Err(closed.clone())), done: Pending::ready(Err(closed)) };
        }
        if !this.peers.lock().contains(&read.peer) {
            return this.net.read(read);
        }
        let (write, disturbed, fate) = {
            let mut state = this.world.0.state.lock();
            let (write, disturbed) = state.writes.begin(this.host, this.net.name(), &read.local);
            let weather = state.weather.get(&this.host).copied().unwrap_or_default();
            (write, disturbed, fate::of_read(&mut state.dice, weather, read.local.bytes()))
        };
        if let Some(by) = disturbed {
            let how = format!("{} ({}) reads into memory that {by} may still write", this.host, this.net.name());
            this.world.0.evidence.broken("M", how);
        }
        if !matches!(fate, ReadFate::Well(_)) {
            this.world.0.evidence.fault(Mark::Read, || format!("{} reads: {fate:?}", this.host));
        }
        let posted = Pending::ready(if fate == ReadFate::Refused { Err(REFUSED) } else { Ok(()) });
        let (answer, done) = Pending::pair();
        this.running.spawn(Arc::clone(this).run(read, fate, write, answer));
        Reading { posted, done }
    }

    fn notify(&self, peer: AgentName, message: Bytes) -> Pending<()> {
        if self.0.closing.is_cancelled() {
            return Pending::ready(Err(FabricError::Closed));
        }
        if !self.0.peers.lock().contains(&peer) {
            return Pending::ready(Err(FabricError::UnknownPeer(peer)));
        }
        Pending::ready(if self.0.send(&peer, message) { Ok(()) } else { Err(UNSENT) })
    }

    fn take_notifications(&self) -> Option<mpsc::Receiver<Notification>> {
        self.0.net.take_notifications()
    }

    fn attention(&self, _attention: Attention) {}

    fn stats(&self) -> FabricStats {
        FabricStats {
            in_flight: usize::try_from(self.0.in_flight.load(Ordering::Relaxed)).unwrap_or(usize::MAX),
            buried: u64::try_from(self.0.buried.lock().len()).unwrap_or(u64::MAX),
            ..self.0.net.stats()
        }
    }

    fn close(&self, deadline: Duration) -> Pending<Closed> {
        let (answer, pending) = Pending::pair();
        let this = Arc::clone(&self.0);
        this.closing.cancel();
        this.running.close();
        self.0.late.spawn(async move {
            let ended = timeout(deadline, this.running.wait()).await.is_ok();
            sleep(DESTROY).await;
            let quiet = ended && this.buried.lock().is_empty();
            this.destroyed.cancel();
            this.world.0.state.lock().writes.destroyed(this.net.name());
            this.world.0.evidence.unregistered(this.net.name());
            let closed = this.net.close(Duration::ZERO).await;
            this.buried.lock().clear();
            answer.send(closed.map(|how| if quiet { how } else { Closed::Destroyed }));
        });
        pending
    }
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("name", self.0.net.name()).field("host", &self.0.host).finish_non_exhaustive()
    }
}

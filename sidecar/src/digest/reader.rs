//! P's side: reads blocks of its own engine over NIXL, through the same door as any decode pod, and digests them.
//!
//! One reader per engine, made when digests are asked for the first time: an agent of its own, so that a read that goes wrong disturbs
//! nothing else, and [`SCRATCH`] bytes. One question at a time; others wait in line, up to a number and their deadlines.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kv::digest::{PageDigest, pages};
use kv::ids::TpRank;
use kv::layout::KvLayout;
use nixl::bulk;
use nixl::{AccessError, AgentName, Closed, Fabric, FabricError, LocalDescs, Memory, Read, Region, RemoteDescs};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::hash::Growing;
use super::on_gpu;
use super::pieces::{HALF, Piece, pieces};
use super::{DigestAsk, DigestError, Digests, MOST_DIGESTS, digests_of};
use crate::peers::advertised;
use crate::session::{Builder, Identity, SessionError, Teller};
use crate::staging::Place;

/// Registered memory of a reader.
pub(crate) const SCRATCH: u64 = 2 * HALF;
/// Questions that are answered or wait, per engine.
const PLACES: usize = 256;
/// How long one piece may take; at 100 MB/s it takes 42 ms.
const PIECE_WITHIN: Duration = Duration::from_secs(10);
/// How long a reader's agent gets to end its reads.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// Digests one engine's blocks.
pub(crate) struct Digester {
    builder: Builder,
    identity: Arc<Identity>,
    places: Semaphore,
    slot: Mutex<Slot>,
    ended: CancellationToken,
}

enum Slot {
    /// No reader yet, or not any more.
    Empty,
    Ready(Reader),
    /// A former reader's agent could not be destroyed: making more of them would only pin more memory.
    Stuck,
}

/// An agent that knows the engine's workers, and memory for what it reads.
struct Reader {
    fabric: Arc<dyn Fabric>,
    workers: Vec<AgentName>,
    scratch: Region,
}

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digester").field("engine", &self.identity.engine).finish_non_exhaustive()
    }
}

impl Digester {
    /// For one start of an engine.
    pub(crate) fn new(builder: Builder, identity: Arc<Identity>) -> Self {
        let (places, slot) = (Semaphore::new(PLACES), Mutex::new(Slot::Empty));
        Self { builder, identity, places, slot, ended: CancellationToken::new() }
    }

    /// Reads and digests; stops at the next piece when nobody is `wanted` any more, the deadline has passed, or the engine goes.
    ///
    /// # Errors
    /// [`DigestError`].
    ///
    /// # Cancel safety
    /// Not safe: hardware may be writing the memory that the next question reads into.
    pub(crate) async fn digest(&self, ask: &DigestAsk, wanted: impl Fn() -> bool) -> Result<Digests, DigestError> {
        let layouts: Vec<Arc<KvLayout>> = self.identity.shards.iter().map(|shard| Arc::clone(&shard.layout)).collect();
        check(ask, &layouts)?;
        let _place = self.places.try_acquire().map_err(|_full| DigestError::Busy)?;
        let mut slot = tokio::select! {
            slot = self.slot.lock() => slot,
            () = tokio::time::sleep_until(ask.deadline) => return Err(DigestError::Late),
            () = self.ended.cancelled() => return Err(DigestError::Ending),
        };
        let go_on = || {
            if self.ended.is_cancelled() {
                Err(DigestError::Ending)
            } else if Instant::now() >= ask.deadline || !wanted() {
                Err(DigestError::Late)
            } else {
                Ok(())
            }
        };
        go_on()?;
        if matches!(*slot, Slot::Empty) {
            *slot = Slot::Ready(self.make().await?);
        }
        let Slot::Ready(reader) = &*slot else { return Err(DigestError::Stuck) };
        let mut digests = Digests::default();
        let mut failed = None;
        for ((layout, worker), shard) in layouts.iter().zip(&reader.workers).zip(0_u16..) {
            match reader.shard(layout, worker, ask, &go_on).await {
                Ok((of_shard, bytes)) => {
                    digests.shards.push(of_shard);
                    digests.bytes = digests.bytes.saturating_add(bytes);
                }
                Err(error) => {
                    tracing::warn!(engine = %self.identity.engine, request = %ask.request, shard, %error, "digests not taken");
                    failed = Some(error);
                    break;
                }
            }
        }
        match failed {
            None => Ok(digests),
            Some(error) => {
                // After a failed read hardware may still write the memory, and the agent may not know the engine any more.
                if matches!(error, DigestError::Read(_)) {
                    *slot = self.retire(std::mem::replace(&mut *slot, Slot::Empty)).await;
                }
                Err(error)
            }
        }
    }

    async fn make(&self) -> Result<Reader, DigestError> {
        let not_built = |error: SessionError| DigestError::NotBuilt(Arc::new(error));
        let place = match self.identity.shards.first() {
            Some(shard) => self.builder.place(TpRank(0), self.identity.version, &shard.layout).await,
            None => Ok(Place::Host),
        };
        let place = place.map_err(|error| not_built(error.into()))?;
        let gpu = place.gpu().cloned();
        let memory = place.memory(SCRATCH).await.map_err(|error| not_built(error.into()))?;
        let Teller { fabric, workers } = self.builder.teller(&self.identity, gpu).await.map_err(not_built)?;
        match self.builder.register(&*fabric, &memory).await {
            Ok(scratch) => Ok(Reader { fabric, workers, scratch }),
            Err(error) => {
                self.builder.agents.close(vec![fabric], CLOSE_WITHIN).await;
                Err(DigestError::NotBuilt(Arc::new(error)))
            }
        }
    }

    /// Closes a reader: what may be asked from then on.
    async fn retire(&self, slot: Slot) -> Slot {
        let Slot::Ready(Reader { fabric, workers: _, scratch }) = slot else { return slot };
        drop(scratch);
        match self.builder.agents.close(vec![fabric], CLOSE_WITHIN).await {
            Closed::Quiet | Closed::Destroyed => Slot::Empty,
            Closed::Stuck => Slot::Stuck,
        }
    }

    /// Takes no more questions, ends the one that is being answered, and gives out the agent, which is to be closed.
    pub(crate) async fn end(&self) -> Option<Arc<dyn Fabric>> {
        self.ended.cancel();
        match std::mem::replace(&mut *self.slot.lock().await, Slot::Empty) {
            Slot::Ready(reader) => Some(reader.fabric),
            Slot::Empty | Slot::Stuck => None,
        }
    }
}

fn check(ask: &DigestAsk, layouts: &[Arc<KvLayout>]) -> Result<(), DigestError> {
    let needed = layouts.first().map_or(1, |layout| usize::from(layout.groups()));
    if ask.blocks.len() != needed {
        return Err(DigestError::Groups { listed: ask.blocks.len(), needed });
    }
    let pool = layouts.iter().map(|layout| layout.logical_blocks()).min().unwrap_or(0);
    if let Some(block) = ask.blocks.iter().flatten().find(|block| block.0 >= pool) {
        return Err(DigestError::BlockOutOfRange { block: *block, pool });
    }
    match digests_of(&ask.blocks, layouts) {
        0 => Err(DigestError::Empty),
        asked if asked > MOST_DIGESTS => Err(DigestError::TooMany { asked }),
        _ => Ok(()),
    }
}

impl Reader {
    /// One shard's digests, in the order of its pages, and the bytes read. While one piece is read the one before is digested.
    async fn shard(
        &self,
        layout: &KvLayout,
        worker: &AgentName,
        ask: &DigestAsk,
        go_on: &impl Fn() -> Result<(), DigestError>,
    ) -> Result<(Vec<u64>, u64), DigestError> {
        let pages = pages(layout, &ask.blocks);
        let mut digesting = Digesting::new(self.scratch.memory().clone(), pages.len());
        let mut bytes: u64 = 0;
        let mut read = None;
        for piece in pieces(layout, &pages, HALF) {
            go_on()?;
            let (digested, piece) = tokio::join!(digesting.on_a_worker(read.take()), self.read(layout, worker, piece));
            let piece = piece?;
            digesting = digested?;
            bytes = piece.local.iter().fold(bytes, |bytes, entry| bytes.saturating_add(entry.1));
            read = Some(piece);
        }
        let digesting = digesting.on_a_worker(read).await?;
        Ok((digesting.digests, bytes))
    }

    async fn read(&self, layout: &KvLayout, worker: &AgentName, piece: Piece) -> Result<Piece, DigestError> {
        let local = LocalDescs::new(&self.scratch, piece.local.iter().copied()).map_err(DigestError::Descs)?;
        let remote = RemoteDescs::new(&advertised(layout), piece.remote.iter().copied()).map_err(DigestError::Descs)?;
        let reading = self.fabric.read(Read { peer: worker.clone(), local, remote, notify: None });
        timeout(PIECE_WITHIN, reading.done).await.unwrap_or(Err(FabricError::Lost)).map_err(DigestError::Read)?;
        Ok(piece)
    }
}

/// Digests of what has been read so far.
struct Digesting {
    memory: Memory,
    growing: Growing,
    /// The page that goes on with the next piece, where the GPU digests.
    page: PageDigest,
    digests: Vec<u64>,
}

impl Digesting {
    fn new(memory: Memory, pages: usize) -> Self {
        Self { memory, growing: Growing::new(), page: PageDigest::new(), digests: vec![0; pages] }
    }

    async fn on_a_worker(mut self, piece: Option<Piece>) -> Result<Self, DigestError> {
        let Some(piece) = piece else { return Ok(self) };
        let bytes = piece.parts.iter().fold(0_u64, |bytes, part| bytes.saturating_add(part.len));
        let bytes = if self.memory.on_gpu().is_some() { u64::MAX } else { bytes };
        let work = bulk::over(bytes, move || self.take(&piece).map(|()| self));
        work.await.map_err(|_ended| DigestError::Compute)?.map_err(|_out_of_range| DigestError::Compute)
    }

    fn take(&mut self, piece: &Piece) -> Result<(), AccessError> {
        if let Some(memory) = self.memory.on_gpu() {
            return Ok(on_gpu::take(memory, piece, &mut self.page, &mut self.digests)?);
        }
        for part in &piece.parts {
            self.growing.take(&self.memory, part.offset, part.len)?;
            if let Some(digest) = part.ends.and_then(|page| self.digests.get_mut(page)) {
                *digest = self.growing.end();
            }
        }
        Ok(())
    }
}

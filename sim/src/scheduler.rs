//! The owner of one rank's blocks: one task that admits requests in order, takes blocks back, keeps pins and their leases.
//!
//! ```text
//! Admit ──► waiting (FIFO) ──► admitted: Holding ──► Free            back to the pool
//!                                          ├───────► Pin ──► done notification or end of lease ──► back to the pool
//!                                          └───────► Quarantine      never handed out again
//! ```
//! A request holds its blocks by a [`Holding`]; dropping it gives them back, so no path through a request can lose them.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use kv::ids::{BlockId, EngineRequestId, TpRank};
use nixl::Attention;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use vllm_wire::notif::{self, Notif};

use crate::arena::Arena;
use crate::kv_bytes::BlockKey;
use crate::pins::{Done, Pins};
use crate::pool::{Allocation, BlockPool};
use crate::stats::RankStats;

/// What others tell the scheduler.
#[derive(Debug)]
pub enum Command {
    /// A request wants blocks.
    Admit(Admit),
    /// Full blocks now hold the KV of these keys.
    Remember {
        /// Blocks in prompt order.
        blocks: Vec<BlockId>,
        /// Their contents.
        keys: Vec<BlockKey>,
        /// Answered when it is done: the blocks must not be given back before.
        done: oneshot::Sender<()>,
    },
    /// A peer's agent sent this to a shard's agent.
    Notified {
        /// Whose agent heard it.
        shard: TpRank,
        /// The message.
        message: Bytes,
    },
}

/// A request for blocks.
#[derive(Debug)]
pub struct Admit {
    /// Contents of the prompt's full blocks that may come from the prefix cache.
    pub keys: Vec<BlockKey>,
    /// Blocks for the prompt and for what will be generated.
    pub total: usize,
    /// Answered when it is this request's turn; dropped when the queue is full. Dropping the other end takes the request
    /// out of the queue.
    pub reply: oneshot::Sender<Admitted>,
}

/// A request's turn.
#[derive(Debug)]
pub struct Admitted {
    /// Its blocks.
    pub allocation: Allocation,
    /// What keeps them.
    pub holding: Holding,
}

/// The right to use blocks; dropped, it gives them back.
#[derive(Debug)]
pub struct Holding(oneshot::Sender<End>);

/// How a request stops using its blocks.
#[derive(Debug)]
enum End {
    Free,
    Pin { request: EngineRequestId, pinned: oneshot::Sender<()> },
    Quarantine,
}

impl Holding {
    /// Keeps the blocks for a reader, under a lease that starts now; answers when that is done.
    pub async fn pin(self, request: EngineRequestId) {
        let (pinned, done) = oneshot::channel();
        if self.0.send(End::Pin { request, pinned }).is_ok() {
            // A scheduler that has ended pins nothing; the process ends then, too.
            drop(done.await);
        }
    }

    /// Takes the blocks out of use for ever: hardware may still write into them.
    pub fn quarantine(self) {
        drop(self.0.send(End::Quarantine));
    }

    /// Gives the blocks back.
    pub fn free(self) {
        drop(self.0.send(End::Free));
    }
}

/// Limits of one rank's scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that may hold blocks at the same time, pinned ones not counted.
    pub max_running: usize,
    /// Requests that may wait.
    pub max_waiting: usize,
}

type Held = BoxFuture<'static, (Vec<BlockId>, End)>;

/// The scheduler of one rank.
pub struct Scheduler {
    pool: BlockPool,
    pins: Pins,
    limits: Limits,
    waiting: VecDeque<Admit>,
    held: FuturesUnordered<Held>,
    stats: Arc<RankStats>,
    arena: Arc<Arena>,
    eager: bool,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("waiting", &self.waiting.len()).field("held", &self.held.len()).finish()
    }
}

impl Scheduler {
    /// A scheduler over a fresh pool.
    pub fn new(pool: BlockPool, pins: Pins, limits: Limits, stats: Arc<RankStats>, arena: Arc<Arena>) -> Self {
        let held = FuturesUnordered::new();
        Self { pool, pins, limits, waiting: VecDeque::new(), held, stats, arena, eager: false }
    }

    /// Runs until it is stopped or nobody can command it any more.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>, stop: CancellationToken) {
        loop {
            self.admit_waiting();
            self.publish();
            let lease_over = self.pins.next_expiry();
            tokio::select! {
                () = stop.cancelled() => return,
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                Some((blocks, end)) = self.held.next(), if !self.held.is_empty() => self.ended(blocks, end),
                () = until(lease_over) => self.expire(),
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Admit(admit) if self.waiting.len() < self.limits.max_waiting => self.waiting.push_back(admit),
            Command::Admit(refused) => drop(refused),
            Command::Remember { blocks, keys, done } => {
                self.pool.remember(&blocks, &keys);
                done.send(()).ok();
            }
            Command::Notified { shard, message } => self.notified(shard, &message),
        }
    }

    /// First come, first served: the front request waits until it fits, and all others behind it.
    fn admit_waiting(&mut self) {
        while self.held.len() < self.limits.max_running {
            let Some(front) = self.waiting.front() else { return };
            if front.reply.is_closed() {
                self.waiting.pop_front();
                continue;
            }
            let Some(allocation) = self.pool.allocate(&front.keys, front.total) else { return };
            let Some(admit) = self.waiting.pop_front() else { return };
            let (holding, ended) = oneshot::channel();
            let blocks = allocation.blocks.clone();
            self.held.push(Box::pin(async move { (blocks, ended.await.unwrap_or(End::Free)) }));
            // A request that has gone meanwhile drops its holding here, which gives the blocks back.
            drop(admit.reply.send(Admitted { allocation, holding: Holding(holding) }));
        }
    }

    fn ended(&mut self, blocks: Vec<BlockId>, end: End) {
        match end {
            End::Free => self.pool.release(&blocks),
            End::Pin { request, pinned } => {
                self.pins.pin(request, blocks, Instant::now());
                pinned.send(()).ok();
            }
            End::Quarantine => {
                warn!(blocks = blocks.len(), "blocks are in quarantine: hardware may still write into them");
                self.stats.quarantined_blocks.add(u64::try_from(blocks.len()).unwrap_or(u64::MAX));
            }
        }
    }

    fn expire(&mut self) {
        for (request, blocks) in self.pins.expire(Instant::now()) {
            warn!(request_id = %request, blocks = blocks.len(), "a lease is over, releasing KV blocks that nobody has read");
            self.stats.expired.add(1);
            self.pool.release(&blocks);
        }
    }

    fn notified(&mut self, shard: TpRank, message: &[u8]) {
        match notif::parse(message) {
            Ok(Notif::Done { request, readers }) => match self.pins.done(&request, shard, readers) {
                Done::Free(blocks) => self.pool.release(&blocks),
                Done::Waiting => {}
                Done::AfterExpiry => {
                    warn!(request_id = %request, "blocks were read after their lease was over");
                    self.stats.late_notifications.add(1);
                }
                Done::Unknown => {
                    warn!(request_id = %request, "done notification for an unknown request");
                    self.stats.unknown_notifications.add(1);
                }
            },
            Ok(Notif::Heartbeat { requests }) => {
                let now = Instant::now();
                for request in requests {
                    // vLLM's decode side beats from the moment a request arrives there, also after the lease; that is no error.
                    let _known: bool = self.pins.heartbeat(&request, now);
                }
            }
            Err(error) => {
                warn!(%error, len = message.len(), "a notification that is none of vLLM's");
                self.stats.unknown_notifications.add(1);
            }
        }
    }

    fn publish(&mut self) {
        self.stats.used_blocks.set(u64::try_from(self.pool.used_blocks()).unwrap_or(u64::MAX));
        self.stats.pinned.set(u64::try_from(self.pins.len()).unwrap_or(u64::MAX));
        let eager = !self.pins.is_empty();
        if eager != self.eager {
            self.eager = eager;
            let attention = if eager { Attention::Eager } else { Attention::Idle };
            for shard in self.arena.shards() {
                shard.fabric.attention(attention);
            }
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        info!(pinned = self.pins.len(), "a rank's scheduler ends");
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;

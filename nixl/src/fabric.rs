//! The trait that everything above uses, and the values that go in and out of it.

use std::{fmt::Debug, time::Duration};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    descs::{LocalDescs, RemoteDescs},
    memory::Memory,
    name::AgentName,
    pending::Pending,
    region::Region,
};

/// One NIXL agent as a KV mover needs it. Object safe: users hold `Arc<dyn Fabric>`.
///
/// No method blocks. Commands go to the agent in order, notifications ahead of everything else that waits (a read may be posted for as
/// long as it takes); when its queue is full they answer [`Busy`](crate::FabricError::Busy), once it is closing
/// [`Closed`](crate::FabricError::Closed).
pub trait Fabric: Debug + Send + Sync + 'static {
    /// What peers call this agent.
    fn name(&self) -> &AgentName;

    /// Registers memory with this agent.
    fn register(&self, memory: Memory) -> Pending<Region>;

    /// The blob that a peer loads to read from the memory registered so far.
    fn local_metadata(&self) -> Pending<Bytes>;

    /// Loads a peer's blob; answers the peer's name. Loading a newer blob of the same peer adds what is new.
    fn load_peer(&self, metadata: Bytes) -> Pending<AgentName>;

    /// Drops a peer's metadata and its connection.
    fn forget_peer(&self, peer: AgentName) -> Pending<()>;

    /// Starts a read from a peer's memory into ours. The lists pair up entry by entry.
    fn read(&self, read: Read) -> Reading;

    /// Sends a notification; answers when the transport has taken it. The agent goes on until it is out.
    fn notify(&self, peer: AgentName, message: Bytes) -> Pending<()>;

    /// The notifications that peers send to this agent, from the first one on. The first caller gets the stream, later ones
    /// none. It is bounded; while it is full the rest waits inside the agent, nothing is lost.
    fn take_notifications(&self) -> Option<mpsc::Receiver<Notification>>;

    /// How soon a notification should be noticed.
    fn attention(&self, attention: Attention);

    /// How the agent is doing.
    fn stats(&self) -> FabricStats;

    /// Ends the agent: it takes no new command, waits up to `deadline` for transfers in flight, then is destroyed. What is
    /// still running then is cut off, which a peer over tcp does not always survive (see `agent/driver/ending.rs`): leave
    /// transfers the time to end, unless their peer is dead.
    fn close(&self, deadline: Duration) -> Pending<Closed>;
}

/// How soon an agent should notice notifications while nothing else goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Within 20 ms; costs next to nothing.
    Idle,
    /// Within 1 ms; costs about 2 % of a core.
    Eager,
}

/// A read from a peer's memory into ours.
#[derive(Clone, Debug)]
pub struct Read {
    /// Whose memory is read; its metadata must be loaded.
    pub peer: AgentName,
    /// Where the bytes go.
    pub local: LocalDescs,
    /// Where they come from.
    pub remote: RemoteDescs,
    /// Sent to the peer once the bytes have been read.
    pub notify: Option<Bytes>,
}

/// A read that was started. Dropping either part cancels nothing.
#[derive(Debug)]
pub struct Reading {
    /// Answers once NIXL has accepted the read, also when it finished at once.
    pub posted: Pending<()>,
    /// Answers when it has ended.
    pub done: Pending<ReadDone>,
}

/// A read that has ended well: the bytes are in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadDone {
    /// Bytes read.
    pub bytes: u64,
    /// Entries of each list.
    pub descs: usize,
    /// Time inside NIXL's post call, which moves all bytes by itself on some transports.
    pub post: Duration,
    /// From the start of the post until the end was seen.
    pub wire: Duration,
}

/// A message from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Who sent it, by its own word.
    pub from: AgentName,
    /// Its bytes.
    pub message: Bytes,
}

/// How an agent is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FabricStats {
    /// False once the agent is closed or its thread has died.
    pub alive: bool,
    /// Commands that wait for the agent.
    pub queued: usize,
    /// Reads posted and not ended.
    pub in_flight: usize,
    /// Their bytes.
    pub in_flight_bytes: u64,
    /// Reads that failed or were given up: their memory stays pinned until the agent is destroyed.
    pub buried: u64,
    /// Their bytes.
    pub buried_bytes: u64,
    /// Things that NIXL refused to take back (requests, registrations, lists); they stay until the agent is destroyed.
    pub failed_cleanups: u64,
    /// Notifications received that wait because their stream is full.
    pub notifications_waiting: usize,
    /// How long the agent's thread has been in its current lap; none while it waits. Seconds mean that it is stuck in a call.
    pub lap: Option<Duration>,
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Every transfer had ended well, then the agent was destroyed: no memory is touched any more.
    Quiet,
    /// Transfers had failed or were still in flight; the agent was destroyed, so no memory is touched any more.
    Destroyed,
    /// The agent could not be destroyed. Its memory stays pinned for ever, and hardware may still write to it.
    Stuck,
}

//! The real thing: one NIXL agent, owned by one OS thread.
//!
//! Handles leave commands in a bounded inbox; the thread carries them out, polls what is in flight and takes notifications.
//! It posts reads itself, since a post may take as long as the whole transfer. With nothing in flight and no duty it waits on
//! the inbox and costs nothing.
//!
//! A read's memory is pinned until a terminal status was *seen*. After a failure, or when the agent is closed over it, it is
//! buried: pinned until the agent is destroyed. When even that fails, or the thread panics, it is leaked.

mod clock;
mod config;
mod doorbell;
mod driver;
mod inbox;
mod pace;
mod prepared;
mod raw;
mod shared;
mod shm;
mod start;
mod transfers;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

pub use config::{AgentConfig, AgentError, IntervalTooShort, Progress, ProgressInterval};
pub use prepared::{PreparedLocal, PreparedRead, PreparedRemote};
pub use raw::PluginInfo;

use crate::{
    descs::{LocalDescs, RemoteDescs},
    error::FabricError,
    fabric::{Attention, Closed, Fabric, FabricStats, Notification, Read, Reading},
    memory::Memory,
    name::AgentName,
    pending::{Answer, Pending},
    region::Region,
};
use inbox::{Command, ReadAnswers};
use shared::Shared;

/// How long an agent that is dropped without [`Fabric::close`] waits for its transfers.
const DROP_DEADLINE: Duration = Duration::from_secs(5);
/// How long NIXL may take to destroy an agent before it counts as stuck.
const DESTROY_BUDGET: Duration = Duration::from_secs(10);

/// One NIXL agent. Dropping it closes it with a deadline of 5 s, in the background.
///
/// A process closes its agents and waits for that before it ends: at its end the libraries' own destructors free what an agent's thread
/// may still be using.
pub struct Agent {
    name: AgentName,
    shared: Arc<Shared>,
    notifications: Mutex<Option<mpsc::Receiver<Notification>>>,
}

impl Agent {
    /// Prepares our side of reads to come.
    pub fn prepare_local(&self, descs: LocalDescs) -> Pending<PreparedLocal> {
        self.ask(|answer| Command::PrepareLocal(descs, answer))
    }

    /// Prepares a peer's side of reads to come.
    pub fn prepare_remote(&self, peer: AgentName, descs: RemoteDescs) -> Pending<PreparedRemote> {
        self.ask(|answer| Command::PrepareRemote(peer, descs, answer))
    }

    /// Starts a read of some entries of prepared lists.
    pub fn read_prepared(&self, read: PreparedRead) -> Reading {
        self.begin(|answers| Command::ReadPrepared(read, answers))
    }

    /// The plugins that NIXL found.
    pub fn plugins(&self) -> Pending<Vec<String>> {
        self.ask(Command::Plugins)
    }

    /// What a plugin says of itself.
    pub fn plugin_info(&self, plugin: &str) -> Pending<PluginInfo> {
        self.ask(|answer| Command::PluginInfo(plugin.to_owned(), answer))
    }

    fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Pending<T> {
        let (answer, pending) = Pending::pair();
        match self.shared.inbox.push(command(answer)) {
            Ok(()) => pending,
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn begin(&self, command: impl FnOnce(ReadAnswers) -> Command) -> Reading {
        let (posted, wait_posted) = Pending::pair();
        let (done, wait_done) = Pending::pair();
        match self.shared.inbox.push(command(ReadAnswers { posted, done })) {
            Ok(()) => Reading { posted: wait_posted, done: wait_done },
            Err(error) => Reading { posted: Pending::ready(Err(error.clone())), done: Pending::ready(Err(error)) },
        }
    }
}

impl Fabric for Agent {
    fn name(&self) -> &AgentName {
        &self.name
    }

    fn register(&self, memory: Memory) -> Pending<Region> {
        self.ask(|answer| Command::Register(memory, answer))
    }

    fn local_metadata(&self) -> Pending<Bytes> {
        self.ask(Command::LocalMetadata)
    }

    fn load_peer(&self, metadata: Bytes) -> Pending<AgentName> {
        self.ask(|answer| Command::LoadPeer(metadata, answer))
    }

    fn forget_peer(&self, peer: AgentName) -> Pending<()> {
        self.ask(|answer| Command::ForgetPeer(peer, answer))
    }

    fn read(&self, read: Read) -> Reading {
        self.begin(|answers| Command::Read(read, answers))
    }

    fn notify(&self, peer: AgentName, message: Bytes) -> Pending<()> {
        self.ask(|answer| Command::Notify(peer, message, answer))
    }

    fn take_notifications(&self) -> Option<mpsc::Receiver<Notification>> {
        self.notifications.lock().take()
    }

    fn attention(&self, attention: Attention) {
        self.shared.inbox.attend(attention);
    }

    fn stats(&self) -> FabricStats {
        self.shared.stats()
    }

    fn close(&self, deadline: Duration) -> Pending<Closed> {
        self.shared.inbox.close(deadline);
        let (answer, pending) = Pending::pair();
        let shared = Arc::clone(&self.shared);
        // The agent's own thread cannot say that it is stuck; this one lives no longer than the deadline and the budget.
        let watch = move || answer.send(Ok(shared.wait_for_end(deadline.saturating_add(DESTROY_BUDGET))));
        match std::thread::Builder::new().name("nixl-close".to_owned()).spawn(watch) {
            Ok(_detached) => pending,
            Err(_) => Pending::ready(Err(FabricError::Lost)),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.inbox.close(DROP_DEADLINE);
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("name", &self.name).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

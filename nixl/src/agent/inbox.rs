//! What others leave for the agent's thread: commands (bounded), what may be let go, and the wish to end.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    doorbell::Doorbell,
    prepared::{PreparedLocal, PreparedRead, PreparedRemote},
    raw::PluginInfo,
};
use crate::{
    descs::{LocalDescs, RemoteDescs},
    error::FabricError,
    fabric::{Attention, Read, ReadDone},
    memory::Memory,
    name::AgentName,
    pending::Answer,
    region::Region,
};

#[derive(Debug)]
pub(super) enum Command {
    Register(Memory, Answer<Region>),
    LocalMetadata(Answer<Bytes>),
    LoadPeer(Bytes, Answer<AgentName>),
    ForgetPeer(AgentName, Answer<()>),
    Read(Read, ReadAnswers),
    PrepareLocal(LocalDescs, Answer<PreparedLocal>),
    PrepareRemote(AgentName, RemoteDescs, Answer<PreparedRemote>),
    ReadPrepared(PreparedRead, ReadAnswers),
    Notify(AgentName, Bytes, Answer<()>),
    Plugins(Answer<Vec<String>>),
    PluginInfo(String, Answer<PluginInfo>),
}

#[derive(Debug)]
pub(super) struct ReadAnswers {
    pub(super) posted: Answer<()>,
    pub(super) done: Answer<ReadDone>,
}

/// Something whose last handle is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retired {
    Registration(u64),
    Prepared(u64),
}

/// Shared by the handles and the thread.
pub(super) struct Inbox {
    left: Doorbell<State>,
    capacity: usize,
}

struct State {
    commands: VecDeque<Command>,
    /// Notifications: they carry leases, and a read ahead of them may be posted for as long as it takes.
    urgent: VecDeque<Command>,
    /// Bounded by what has been registered and prepared, and must never be refused: a lost entry is memory lost.
    retired: Vec<Retired>,
    attention: Option<Attention>,
    /// How long transfers in flight may take to end, once somebody wants the agent to end.
    close: Option<Duration>,
    woken: bool,
}

impl State {
    fn is_empty(&self) -> bool {
        !self.woken && self.commands.is_empty() && self.urgent.is_empty()
    }
}

/// What the thread takes out in one lap.
pub(super) struct Taken {
    pub(super) commands: Vec<Command>,
    pub(super) retired: Vec<Retired>,
    pub(super) attention: Option<Attention>,
    pub(super) close: Option<Duration>,
}

impl Inbox {
    pub(super) fn new(capacity: usize, attention: Option<Attention>) -> Arc<Self> {
        let state = State {
            commands: VecDeque::new(),
            urgent: VecDeque::new(),
            retired: Vec::new(),
            attention,
            close: None,
            woken: false,
        };
        Arc::new(Self { left: Doorbell::new(state), capacity })
    }

    /// Leaves a command. A refused one is dropped, which answers nobody: the caller does.
    pub(super) fn push(&self, command: Command) -> Result<(), FabricError> {
        let mut state = self.left.lock();
        if state.close.is_some() {
            return Err(FabricError::Closed);
        }
        let queue = if matches!(command, Command::Notify(..)) { &mut state.urgent } else { &mut state.commands };
        if queue.len() >= self.capacity {
            return Err(FabricError::Busy);
        }
        queue.push_back(command);
        drop(state);
        self.left.ring();
        Ok(())
    }

    pub(super) fn retire(&self, retired: Retired) {
        self.change(|state| state.retired.push(retired));
    }

    pub(super) fn attend(&self, attention: Attention) {
        self.change(|state| state.attention = Some(attention));
    }

    /// Ends the agent. The shortest deadline wins.
    pub(super) fn close(&self, deadline: Duration) {
        self.change(|state| state.close = Some(state.close.map_or(deadline, |other| other.min(deadline))));
    }

    pub(super) fn queued(&self) -> usize {
        let state = self.left.lock();
        state.commands.len() + state.urgent.len()
    }

    /// Takes the notifications that have come meanwhile.
    pub(super) fn take_urgent(&self) -> VecDeque<Command> {
        std::mem::take(&mut self.left.lock().urgent)
    }

    /// Takes all notifications, up to `most` other commands, and everything else.
    pub(super) fn take(&self, most: usize) -> Taken {
        let mut state = self.left.lock();
        state.woken = false;
        let mut commands: Vec<Command> = std::mem::take(&mut state.urgent).into();
        let count = state.commands.len().min(most);
        commands.extend(state.commands.drain(..count));
        Taken { commands, retired: std::mem::take(&mut state.retired), attention: state.attention, close: state.close }
    }

    /// Waits until something is there, at most `limit`; awake at first.
    pub(super) fn wait(&self, awake: Duration, limit: Option<Duration>) {
        // One that ends early only makes one lap more.
        self.left.wait(awake, limit, State::is_empty);
    }

    fn change(&self, act: impl FnOnce(&mut State)) {
        let mut state = self.left.lock();
        act(&mut state);
        state.woken = true;
        drop(state);
        self.left.ring();
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("queued", &self.queued()).finish_non_exhaustive()
    }
}

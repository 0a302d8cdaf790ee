//! The agent's thread: the only one that calls into NIXL.

mod ending;
mod lists;
mod peers;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::CString,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    clock,
    inbox::{Command, Inbox, ReadAnswers, Retired, Taken},
    pace::{self, Pace},
    raw::{Prepared, RawAgent},
    shared::Shared,
    transfers::{Pins, Start, Transfers},
};
use crate::{
    descs::check_pair,
    error::FabricError,
    fabric::{Attention, Notification, Read},
    memory::{Memory, MemoryError},
    name::AgentName,
    pending::Answer,
    region::{Owner, Region, Registration},
};

/// Commands carried out in one lap, so that a flood of them does not keep transfers from being polled.
const PER_LAP: usize = 64;

/// How long an agent that ends pushes its last notification out.
const PUSH_OUT: Duration = Duration::from_millis(200);
/// How often a full stream is tried again.
const BACKLOG_LAP: Duration = Duration::from_millis(10);
/// The longest wait of an agent that ends: its deadline runs.
const CLOSING_LAP: Duration = Duration::from_millis(1);

pub(super) struct Driver {
    pub(super) raw: RawAgent,
    pub(super) shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    owner: Owner,
    next_key: u64,
    /// Memory that NIXL knows. Kept here too, so that it outlives its registration whoever drops what.
    registered: BTreeMap<u64, Memory>,
    prepared: BTreeMap<u64, (Prepared, Option<AgentName>)>,
    peers: BTreeSet<AgentName>,
    /// Peers to forget once nothing uses them.
    forgetting: Vec<(AgentName, Answer<()>)>,
    pub(super) transfers: Transfers,
    max_in_flight: usize,
    stream: mpsc::Sender<Notification>,
    backlog: VecDeque<Notification>,
    pace: Pace,
    /// When the last notification was handed over that may still be inside NIXL.
    sent: Option<Instant>,
    /// When notifications were last asked for.
    asked: Option<Instant>,
}

/// Hands a dropped region to the agent's thread.
struct Registered {
    inbox: Arc<Inbox>,
    key: u64,
}

impl Registration for Registered {}

impl Drop for Registered {
    fn drop(&mut self) {
        self.inbox.retire(Retired::Registration(self.key));
    }
}

impl Driver {
    pub(super) fn new(
        raw: RawAgent,
        shared: &Arc<Shared>,
        max_in_flight: usize,
        stream: mpsc::Sender<Notification>,
    ) -> Self {
        Self {
            raw,
            shared: Arc::clone(shared),
            inbox: Arc::clone(&shared.inbox),
            owner: shared.owner,
            next_key: 0,
            registered: BTreeMap::new(),
            prepared: BTreeMap::new(),
            peers: BTreeSet::new(),
            forgetting: Vec::new(),
            transfers: Transfers::default(),
            max_in_flight,
            stream,
            backlog: VecDeque::new(),
            pace: Pace::default(),
            sent: None,
            asked: None,
        }
    }

    /// Laps until the agent shall end and nothing is in flight, or the deadline for that is over.
    pub(super) fn run(&mut self) {
        let mut closing: Option<Instant> = None;
        loop {
            self.shared.lap_begins();
            let taken = self.inbox.take(PER_LAP);
            let (attention, close) = (taken.attention, taken.close);
            self.lap(taken);
            let now = clock::now();
            let mut limit = self.next_wait(attention, now);
            if let Some(deadline) = close {
                let since = *closing.get_or_insert(now);
                let over = now.saturating_duration_since(since) >= deadline;
                let out = self.sent.is_none_or(|sent| now.saturating_duration_since(sent) >= PUSH_OUT);
                if over || (out && self.transfers.in_flight() == 0 && self.inbox.queued() == 0) {
                    return;
                }
                limit = Some(limit.unwrap_or(CLOSING_LAP).min(CLOSING_LAP));
            }
            self.shared.lap_ends(&self.transfers, self.backlog.len());
            if limit != Some(Duration::ZERO) {
                self.inbox.wait(self.pace.awake(now), limit);
            } else if self.inbox.queued() == 0 {
                // Whoever shares this core may have what the poll waits for.
                std::thread::yield_now();
            }
        }
    }

    fn lap(&mut self, taken: Taken) {
        if !taken.commands.is_empty() {
            self.pace.asked(clock::now());
        }
        for command in taken.commands {
            for urgent in self.inbox.take_urgent() {
                self.carry_out(urgent);
            }
            self.carry_out(command);
        }
        for retired in taken.retired {
            self.let_go(retired);
        }
        let ended = self.transfers.poll(&self.raw);
        if ended.reads > 0 {
            let now = clock::now();
            self.pace.happened(now);
            // A notification leaves with the poll that saw the end, or soon after.
            self.sent = if ended.notifying { Some(now) } else { self.sent };
        }
        self.ask_for_notifications(taken.attention);
        self.forget_idle_peers();
    }

    /// None: until somebody leaves something.
    fn next_wait(&mut self, attention: Option<Attention>, now: Instant) -> Option<Duration> {
        let in_flight = (self.transfers.in_flight() > 0).then(|| self.pace.next(now));
        let lingering = self.sent.and_then(|sent| pace::linger(now.saturating_duration_since(sent)));
        if lingering.is_none() {
            self.sent = None;
        }
        // While the stream is full the duty rests, see `ask_for_notifications`.
        let duty = attention.filter(|_| self.backlog.is_empty()).map(|attention| {
            let since = self.asked.map_or(Duration::MAX, |asked| now.saturating_duration_since(asked));
            interval(attention).saturating_sub(since).max(Duration::from_micros(50))
        });
        let more = (self.inbox.queued() > 0).then_some(Duration::ZERO);
        let backlog = (!self.backlog.is_empty()).then_some(BACKLOG_LAP);
        [in_flight, lingering, duty, more, backlog].into_iter().flatten().min()
    }

    fn carry_out(&mut self, command: Command) {
        // A lap of many posts is slow; only one call that does not return is stuck.
        self.shared.lap_begins();
        match command {
            Command::Register(memory, answer) => answer.send(self.register(memory)),
            Command::LocalMetadata(answer) => answer.send(self.raw.local_metadata().map_err(FabricError::Nixl)),
            Command::LoadPeer(blob, answer) => answer.send(self.load_peer(&blob)),
            Command::ForgetPeer(peer, answer) => self.forget_peer(peer, answer),
            Command::Read(read, answers) => self.read(read, answers),
            Command::PrepareLocal(descs, answer) => answer.send(self.prepare_local(descs)),
            Command::PrepareRemote(peer, descs, answer) => answer.send(self.prepare_remote(peer, descs)),
            Command::ReadPrepared(read, answers) => self.read_prepared(read, answers),
            Command::Notify(peer, message, answer) => answer.send(self.notify(&peer, &message)),
            Command::Plugins(answer) => answer.send(self.raw.plugins().map_err(FabricError::Nixl)),
            Command::PluginInfo(plugin, answer) => {
                // The C API takes no NUL: such a plugin is as unknown as any other wrong name.
                let plugin = CString::new(plugin).unwrap_or_default();
                answer.send(self.raw.plugin_info(&plugin).map_err(FabricError::Nixl));
            }
        }
    }

    fn register(&mut self, memory: Memory) -> Result<Region, FabricError> {
        let key = self.key();
        if let Some(memory) = memory.on_gpu() {
            memory.gpu().make_current().map_err(MemoryError::Gpu)?;
        }
        self.raw.register(&memory)?;
        self.registered.insert(key, memory.clone());
        Ok(Region::new(self.owner, memory, Registered { inbox: Arc::clone(&self.inbox), key }))
    }

    fn read(&mut self, read: Read, answers: ReadAnswers) {
        let made = self.room().and_then(|()| {
            check_pair(self.owner, &read.local, &read.remote)?;
            let peer = self.known(&read.peer)?;
            Ok(self.raw.create_read(&read.local, &read.remote, &peer, read.notify.as_deref())?)
        });
        match made {
            Ok(request) => {
                let (bytes, descs) = (read.local.bytes(), read.local.entries().len());
                let pins = Pins::Listed { _local: read.local };
                let notifying = read.notify.is_some();
                self.start(Start { request, pins, peer: read.peer, bytes, descs, notifying, answers });
            }
            Err(error) => refuse(answers, error),
        }
    }

    fn start(&mut self, start: Start) {
        let notifying = start.notifying;
        self.transfers.post(&self.raw, start);
        let now = clock::now();
        self.pace.happened(now);
        self.sent = if notifying { Some(now) } else { self.sent };
    }

    fn room(&self) -> Result<(), FabricError> {
        if self.transfers.in_flight() < self.max_in_flight { Ok(()) } else { Err(FabricError::Busy) }
    }

    fn let_go(&mut self, retired: Retired) {
        match retired {
            Retired::Registration(key) => {
                let Some(memory) = self.registered.get(&key) else { return };
                if self.raw.deregister(memory).is_ok() {
                    let memory = self.registered.remove(&key);
                    drop(memory);
                } else {
                    self.transfers.cleanup_failed();
                }
            }
            Retired::Prepared(key) => self.drop_prepared(key),
        }
    }

    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }
}

fn interval(attention: Attention) -> Duration {
    match attention {
        Attention::Idle => Duration::from_millis(20),
        Attention::Eager => Duration::from_millis(1),
    }
}

fn c_name(name: &AgentName) -> CString {
    // A name has no NUL, so the default is never taken.
    CString::new(name.as_str()).unwrap_or_default()
}

fn refuse(answers: ReadAnswers, error: FabricError) {
    answers.posted.send(Err(error.clone()));
    answers.done.send(Err(error));
}

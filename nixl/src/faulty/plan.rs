//! Which read and which notification goes wrong, and how.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;

/// What goes wrong with a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFault {
    /// The bytes start to move only after this time, which counts as time on the wire.
    Delay(Duration),
    /// The post is refused.
    RefusePost,
    /// It fails before anything has landed.
    FailEmpty,
    /// It fails after the first half of the entries has landed (one entry: after all).
    FailHalf,
    /// It fails at once, and the bytes land after this time all the same, unless the agent is closed before.
    FailThenLand(Duration),
    /// It ends well, with the last byte of each entry inverted.
    Corrupt,
    /// It never ends, until the agent is closed.
    Hang,
}

/// What goes wrong with a notification that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifyFault {
    /// The sender is told that it was sent, and it never arrives.
    Drop,
    /// It arrives twice.
    Double,
    /// The sender is told that it could not be sent.
    Refuse,
}

/// The rules. Cloning shares them: keep one clone to change them.
#[derive(Clone, Default)]
pub struct FaultPlan(Arc<Mutex<Rules>>);

#[derive(Debug, Default)]
struct Rules {
    reads: Rule<ReadFault>,
    notifications: Rule<NotifyFault>,
    room: Option<usize>,
    stuck: bool,
    injected: u64,
}

/// First the queue, each entry for one event (none: that one goes well), then the standing fault.
#[derive(Debug)]
struct Rule<T> {
    next: VecDeque<Option<T>>,
    always: Option<T>,
}

impl<T> Default for Rule<T> {
    fn default() -> Self {
        Self { next: VecDeque::new(), always: None }
    }
}

impl<T: Copy> Rule<T> {
    fn take(&mut self) -> Option<T> {
        self.next.pop_front().unwrap_or(self.always)
    }
}

impl FaultPlan {
    /// Nothing goes wrong.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every read that no queued entry decides goes so from now on; none: well.
    pub fn reads(&self, fault: Option<ReadFault>) {
        self.0.lock().reads.always = fault;
    }

    /// Queues the fate of one read to come; none: it goes well.
    pub fn next_read(&self, fault: Option<ReadFault>) {
        self.0.lock().reads.next.push_back(fault);
    }

    /// Every notification that no queued entry decides goes so from now on; none: well.
    pub fn notifications(&self, fault: Option<NotifyFault>) {
        self.0.lock().notifications.always = fault;
    }

    /// Queues the fate of one notification to come; none: it goes well.
    pub fn next_notification(&self, fault: Option<NotifyFault>) {
        self.0.lock().notifications.next.push_back(fault);
    }

    /// Each fabric takes so many reads at a time, one more is answered [`Busy`](crate::FabricError::Busy); none: no bound.
    pub fn room(&self, most: Option<usize>) {
        self.0.lock().room = most;
    }

    /// Whether fabrics that are closed from now on cannot be destroyed: what is on its way lands all the same, what hangs is never
    /// answered.
    pub fn stuck(&self, stuck: bool) {
        self.0.lock().stuck = stuck;
    }

    /// Forgets all rules.
    pub fn clear(&self) {
        let mut rules = self.0.lock();
        rules.reads = Rule::default();
        rules.notifications = Rule::default();
        rules.room = None;
        rules.stuck = false;
    }

    /// Faults so far.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.0.lock().injected
    }

    pub(super) fn for_room(&self) -> Option<usize> {
        self.0.lock().room
    }

    pub(super) fn for_close(&self) -> bool {
        self.0.lock().stuck
    }

    pub(super) fn for_read(&self) -> Option<ReadFault> {
        let mut rules = self.0.lock();
        let fault = rules.reads.take();
        rules.injected += u64::from(fault.is_some());
        fault
    }

    pub(super) fn for_notify(&self) -> Option<NotifyFault> {
        let mut rules = self.0.lock();
        let fault = rules.notifications.take();
        rules.injected += u64::from(fault.is_some());
        fault
    }
}

impl fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.lock().fmt(f)
    }
}

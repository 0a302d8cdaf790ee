//! One transfer: pulling one request's KV from a prefill rank into staging, as a machine that only decides.
//!
//! ```text
//! Queued ─StagingGranted─► AwaitingPeer ─PeerReady─► InFlight ─all shards landed─► Verifying ─Verified─► Landed ─Told─► Done
//!    │ refused, lease over,    │ PeerFailed,             │ a shard failed,             │ DigestMismatch
//!    │ deadline, Cancel        │ lease over, …           │ lease over, …               ▼
//!    ▼                         ▼                         ▼                           Failed
//!  Failed                    Failed                   Quiescing ─every shard terminal─► Failed
//! ```
//!
//! When the source's digests are wanted, they are asked for as the transfer begins and may come at any time before its end. A transfer whose
//! bytes are there first waits for them in `AwaitingDigest`, under the lease, before it is verified: they count only if they came within it.
//!
//! Invariants, each a property in this module's tests:
//! **M** granted slots are released, quarantined or handed over exactly once, and never released while hardware may write;
//! **L** a transfer that outlived its lease never lands; **N** the producer is told exactly once, only after landing;
//! **P** the outcome is published exactly once; **T** when every read ends and time passes, the state is terminal.

use std::time::Instant;

use crate::ids::TpRank;
use crate::lease::Lease;
use crate::shards::ShardSet;

/// What is carried through a transfer until its bytes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The right to read the producer's blocks.
    pub lease: Lease,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// TP shards to read, `0..shards`.
    pub shards: u16,
    /// What the source says that its blocks hold.
    pub source: SourceDigest,
}

/// Whether the digests of the producer's blocks are needed, and are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceDigest {
    /// Nothing is compared.
    NotWanted,
    /// They were asked for.
    Awaited,
    /// They are here, and came within the lease.
    Here,
}

/// Where a transfer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for staging slots; holds nothing.
    Queued(Terms),
    /// Holds slots; the producer's metadata is not loaded yet.
    AwaitingPeer(Terms),
    /// Reads are posted or on their way to be: hardware may write the slots.
    InFlight {
        /// The terms, with the lease as extended so far.
        terms: Terms,
        /// Shards whose read has not ended.
        running: ShardSet,
        /// Bytes that have landed so far.
        bytes: u64,
    },
    /// Not wanted any more, and hardware may *still* write the slots.
    Quiescing {
        /// Why it is not wanted; already published.
        why: Failure,
        /// Shards whose read has not ended.
        running: ShardSet,
        /// Whether a failed read left its memory in doubt.
        doubtful: bool,
    },
    /// All bytes are here, read within the lease; the source's digests are not.
    AwaitingDigest {
        /// The terms, with the lease as extended so far.
        terms: Terms,
        /// Bytes over all shards.
        bytes: u64,
    },
    /// All bytes are here, read within the lease; their digest is being compared if that was asked for.
    Verifying {
        /// Bytes over all shards.
        bytes: u64,
    },
    /// The receipt is out; the producer has not been told yet.
    Landed {
        /// Bytes over all shards.
        bytes: u64,
    },
    /// The producer has been told, or telling it failed (its lease frees the blocks then).
    Done {
        /// Bytes over all shards.
        bytes: u64,
        /// Whether every producer shard was told.
        producer_told: bool,
    },
    /// Ended badly. Its slots are released or in quarantine.
    Failed(Failure),
}

/// Why a transfer ended badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No staging became free in time.
    #[error("no staging slots became free in time")]
    StagingFull,
    /// The request is larger than the whole arena.
    #[error("the request is larger than the staging arena")]
    ExceedsStaging,
    /// The producer could not be reached or understood; the driver keeps the details.
    #[error("the producer's side channel gave no usable answer")]
    Peer,
    /// The producer may have reused the blocks before they were read.
    #[error("the producer's lease was over before the blocks were read")]
    LeaseExpired,
    /// A read ended with this NIXL status.
    #[error("a NIXL read ended with status {0}")]
    Nixl(i32),
    /// The source's digests could not be had; the driver keeps the details.
    #[error("the digests of the producer's blocks could not be had")]
    NoSourceDigest,
    /// What landed is not what the producer holds.
    #[error("the digest of what landed differs from the source's")]
    DigestMismatch,
    /// The caller's deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The caller gave it up.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// The sidecar is shutting down, or the decode engine went away.
    #[error("the sidecar or its engine is shutting down")]
    ShuttingDown,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The slots asked for are ours.
    StagingGranted,
    /// They will not be: [`Failure::StagingFull`] or [`Failure::ExceedsStaging`].
    StagingRefused(Failure),
    /// The producer's agents are loaded and its layout fits.
    PeerReady,
    /// They are not and will not be.
    PeerFailed,
    /// One shard's read ended well.
    ShardLanded {
        /// Which.
        shard: TpRank,
        /// Its bytes.
        bytes: u64,
    },
    /// One shard's read ended badly.
    ShardFailed {
        /// Which.
        shard: TpRank,
        /// NIXL's status.
        code: i32,
        /// Whether hardware certainly does not write any more (the read was never posted).
        quiet: bool,
    },
    /// The source's digests are here.
    SourceDigested,
    /// They are not and will not be.
    SourceUndigested,
    /// The digests agree, or none was asked for.
    Verified,
    /// The digests differ.
    DigestMismatch,
    /// A heartbeat went out to every producer shard at this time.
    BeatSent(Instant),
    /// Telling the producer ended.
    Told {
        /// Whether every shard was told.
        sent: bool,
    },
    /// The caller gives up: [`Failure::Cancelled`] or [`Failure::ShuttingDown`].
    Cancel(Failure),
    /// Time passed.
    Tick,
}

/// What the driver must do, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Take the request out of the staging queue.
    WithdrawAsk,
    /// Load the producer's metadata.
    ConnectPeer,
    /// Start one read per shard.
    PostReads,
    /// Compare digests if that was asked for; answer with [`Event::Verified`] otherwise.
    Verify,
    /// Answer the caller with this state's outcome.
    Publish,
    /// The slots now belong to collection.
    HandOver,
    /// Tell every producer shard that its blocks may be freed.
    TellProducer,
    /// Give the slots back.
    ReleaseSlots,
    /// Put the slots aside until the agent is gone.
    QuarantineSlots,
}

/// A state and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The new state.
    pub state: State,
    /// What to do, in order.
    pub effects: &'static [Effect],
}

use Effect as F;
use Event as E;
use State as S;

impl State {
    /// A new transfer, which has just asked for staging.
    pub fn new(terms: Terms) -> Self {
        S::Queued(terms)
    }

    /// The one place where a transfer's fate is decided.
    #[must_use]
    pub fn step(self, event: Event, now: Instant) -> Step {
        match self {
            S::Queued(terms) => queued(terms, event, now),
            S::AwaitingPeer(terms) => awaiting_peer(terms, event, now),
            S::InFlight { terms, running, bytes } => in_flight(terms, running, bytes, event, now),
            S::Quiescing { why, running, doubtful } => quiescing(why, running, doubtful, event),
            S::AwaitingDigest { terms, bytes } => awaiting_digest(terms, bytes, event, now),
            S::Verifying { bytes } => match event {
                E::Verified => go(S::Landed { bytes }, &[F::Publish, F::HandOver, F::TellProducer]),
                E::DigestMismatch => go(S::Failed(Failure::DigestMismatch), &[F::Publish, F::ReleaseSlots]),
                E::Cancel(why) => go(S::Failed(why), &[F::Publish, F::ReleaseSlots]),
                E::StagingGranted
                | E::StagingRefused(_)
                | E::PeerReady
                | E::PeerFailed
                | E::ShardLanded { .. }
                | E::ShardFailed { .. }
                | E::SourceDigested
                | E::SourceUndigested
                | E::BeatSent(_)
                | E::Told { .. }
                | E::Tick => go(S::Verifying { bytes }, &[]),
            },
            S::Landed { bytes } => match event {
                E::Told { sent } => go(S::Done { bytes, producer_told: sent }, &[]),
                E::StagingGranted
                | E::StagingRefused(_)
                | E::PeerReady
                | E::PeerFailed
                | E::ShardLanded { .. }
                | E::ShardFailed { .. }
                | E::SourceDigested
                | E::SourceUndigested
                | E::Verified
                | E::DigestMismatch
                | E::BeatSent(_)
                | E::Cancel(_)
                | E::Tick => go(S::Landed { bytes }, &[]),
            },
            S::Done { .. } => go(self, &[]),
            // A grant that crosses a failure on its way still has to be given back.
            S::Failed(why) => match event {
                E::StagingGranted => go(S::Failed(why), &[F::ReleaseSlots]),
                E::StagingRefused(_)
                | E::PeerReady
                | E::PeerFailed
                | E::ShardLanded { .. }
                | E::ShardFailed { .. }
                | E::SourceDigested
                | E::SourceUndigested
                | E::Verified
                | E::DigestMismatch
                | E::BeatSent(_)
                | E::Told { .. }
                | E::Cancel(_)
                | E::Tick => go(S::Failed(why), &[]),
            },
        }
    }

    /// Whether the producer must be kept from letting the blocks go: heartbeats are due.
    pub fn wants_beats(&self) -> Option<&Lease> {
        match self {
            S::Queued(terms) | S::AwaitingPeer(terms) | S::InFlight { terms, .. } | S::AwaitingDigest { terms, .. } => {
                Some(&terms.lease)
            }
            S::Quiescing { .. } | S::Verifying { .. } | S::Landed { .. } | S::Done { .. } | S::Failed(_) => None,
        }
    }

    /// When a [`Event::Tick`] will change something, if nothing else does.
    pub fn next_tick(&self) -> Option<Instant> {
        match self {
            S::Queued(terms) | S::AwaitingPeer(terms) | S::InFlight { terms, .. } | S::AwaitingDigest { terms, .. } => {
                Some(terms.deadline.min(terms.lease.over_at()))
            }
            S::Quiescing { .. } | S::Verifying { .. } | S::Landed { .. } | S::Done { .. } | S::Failed(_) => None,
        }
    }

    /// Whether nothing can happen any more.
    pub fn is_terminal(&self) -> bool {
        match self {
            S::Done { .. } | S::Failed(_) => true,
            S::Queued(_)
            | S::AwaitingPeer(_)
            | S::InFlight { .. }
            | S::Quiescing { .. }
            | S::AwaitingDigest { .. }
            | S::Verifying { .. }
            | S::Landed { .. } => false,
        }
    }
}

fn go(state: State, effects: &'static [Effect]) -> Step {
    Step { state, effects }
}

/// Why the terms alone end a transfer now.
fn over(terms: &Terms, now: Instant) -> Option<Failure> {
    if terms.lease.is_over(now) {
        Some(Failure::LeaseExpired)
    } else if now >= terms.deadline {
        Some(Failure::Deadline)
    } else {
        None
    }
}

/// When the heartbeat got out lies between `sent_at` and `now`: the first counts for what it buys, the second for whether it came in time.
fn beaten(mut terms: Terms, sent_at: Instant, now: Instant) -> Terms {
    if !terms.lease.is_over(now) {
        terms.lease.beat(sent_at);
    }
    terms
}

/// The source's digests are here: they count if they came while its blocks were certainly still the producer's.
fn digested(mut terms: Terms, now: Instant) -> Terms {
    if terms.source == SourceDigest::Awaited && !terms.lease.is_over(now) {
        terms.source = SourceDigest::Here;
    }
    terms
}

fn queued(terms: Terms, event: Event, now: Instant) -> Step {
    let give_up = |why| go(S::Failed(why), &[F::WithdrawAsk, F::Publish]);
    match event {
        E::StagingGranted => match over(&terms, now) {
            Some(why) => go(S::Failed(why), &[F::Publish, F::ReleaseSlots]),
            None => go(S::AwaitingPeer(terms), &[F::ConnectPeer]),
        },
        E::StagingRefused(why) => go(S::Failed(why), &[F::Publish]),
        E::Cancel(why) => give_up(why),
        E::SourceUndigested => give_up(Failure::NoSourceDigest),
        E::SourceDigested => go(S::Queued(digested(terms, now)), &[]),
        E::BeatSent(at) => go(S::Queued(beaten(terms, at, now)), &[]),
        E::Tick => match over(&terms, now) {
            Some(why) => give_up(why),
            None => go(S::Queued(terms), &[]),
        },
        E::PeerReady
        | E::PeerFailed
        | E::ShardLanded { .. }
        | E::ShardFailed { .. }
        | E::Verified
        | E::DigestMismatch
        | E::Told { .. } => go(S::Queued(terms), &[]),
    }
}

fn awaiting_peer(terms: Terms, event: Event, now: Instant) -> Step {
    let fail = |why| go(S::Failed(why), &[F::Publish, F::ReleaseSlots]);
    match event {
        E::PeerReady => match over(&terms, now) {
            Some(why) => fail(why),
            None => {
                let running = ShardSet::all(terms.shards);
                go(S::InFlight { terms, running, bytes: 0 }, &[F::PostReads])
            }
        },
        E::PeerFailed => fail(Failure::Peer),
        E::Cancel(why) => fail(why),
        E::SourceUndigested => fail(Failure::NoSourceDigest),
        E::SourceDigested => go(S::AwaitingPeer(digested(terms, now)), &[]),
        E::BeatSent(at) => go(S::AwaitingPeer(beaten(terms, at, now)), &[]),
        E::Tick => match over(&terms, now) {
            Some(why) => fail(why),
            None => go(S::AwaitingPeer(terms), &[]),
        },
        E::StagingGranted
        | E::StagingRefused(_)
        | E::ShardLanded { .. }
        | E::ShardFailed { .. }
        | E::Verified
        | E::DigestMismatch
        | E::Told { .. } => go(S::AwaitingPeer(terms), &[]),
    }
}

fn in_flight(terms: Terms, mut running: ShardSet, bytes: u64, event: Event, now: Instant) -> Step {
    let stay = |terms, running, bytes| go(S::InFlight { terms, running, bytes }, &[]);
    match event {
        E::ShardLanded { shard, bytes: landed } => {
            if !running.take(shard) {
                return stay(terms, running, bytes);
            }
            let bytes = bytes.saturating_add(landed);
            if !running.is_empty() {
                return stay(terms, running, bytes);
            }
            // Success says that the bytes came, not whose they were: only the lease says that.
            if terms.lease.is_over(now) {
                return go(S::Failed(Failure::LeaseExpired), &[F::Publish, F::ReleaseSlots]);
            }
            match terms.source {
                SourceDigest::Awaited => go(S::AwaitingDigest { terms, bytes }, &[]),
                SourceDigest::NotWanted | SourceDigest::Here => go(S::Verifying { bytes }, &[F::Verify]),
            }
        }
        E::ShardFailed { shard, code, quiet } => {
            if !running.take(shard) {
                return stay(terms, running, bytes);
            }
            let why = if terms.lease.is_over(now) { Failure::LeaseExpired } else { Failure::Nixl(code) };
            quiesce(why, running, !quiet)
        }
        E::Cancel(why) => quiesce(why, running, false),
        E::SourceUndigested => quiesce(Failure::NoSourceDigest, running, false),
        E::SourceDigested => stay(digested(terms, now), running, bytes),
        E::BeatSent(at) => stay(beaten(terms, at, now), running, bytes),
        E::Tick => match over(&terms, now) {
            Some(why) => quiesce(why, running, false),
            None => stay(terms, running, bytes),
        },
        E::StagingGranted
        | E::StagingRefused(_)
        | E::PeerReady
        | E::PeerFailed
        | E::Verified
        | E::DigestMismatch
        | E::Told { .. } => stay(terms, running, bytes),
    }
}

/// No read runs any more: the slots are free at once when it ends badly.
fn awaiting_digest(terms: Terms, bytes: u64, event: Event, now: Instant) -> Step {
    let fail = |why| go(S::Failed(why), &[F::Publish, F::ReleaseSlots]);
    match event {
        E::SourceDigested => match over(&terms, now) {
            Some(why) => fail(why),
            None => go(S::Verifying { bytes }, &[F::Verify]),
        },
        E::SourceUndigested => fail(Failure::NoSourceDigest),
        E::Cancel(why) => fail(why),
        E::BeatSent(at) => go(S::AwaitingDigest { terms: beaten(terms, at, now), bytes }, &[]),
        E::Tick => match over(&terms, now) {
            Some(why) => fail(why),
            None => go(S::AwaitingDigest { terms, bytes }, &[]),
        },
        E::StagingGranted
        | E::StagingRefused(_)
        | E::PeerReady
        | E::PeerFailed
        | E::ShardLanded { .. }
        | E::ShardFailed { .. }
        | E::Verified
        | E::DigestMismatch
        | E::Told { .. } => go(S::AwaitingDigest { terms, bytes }, &[]),
    }
}

/// The caller is answered at once; the slots wait until no read runs.
fn quiesce(why: Failure, running: ShardSet, doubtful: bool) -> Step {
    match (running.is_empty(), doubtful) {
        (false, _) => go(S::Quiescing { why, running, doubtful }, &[F::Publish]),
        (true, true) => go(S::Failed(why), &[F::Publish, F::QuarantineSlots]),
        (true, false) => go(S::Failed(why), &[F::Publish, F::ReleaseSlots]),
    }
}

fn quiescing(why: Failure, mut running: ShardSet, mut doubtful: bool, event: Event) -> Step {
    match event {
        E::ShardLanded { shard, .. } => {
            running.take(shard);
        }
        E::ShardFailed { shard, quiet, .. } => doubtful |= running.take(shard) && !quiet,
        E::StagingGranted
        | E::StagingRefused(_)
        | E::PeerReady
        | E::PeerFailed
        | E::SourceDigested
        | E::SourceUndigested
        | E::Verified
        | E::DigestMismatch
        | E::BeatSent(_)
        | E::Told { .. }
        | E::Cancel(_)
        | E::Tick => {}
    }
    match (running.is_empty(), doubtful) {
        (false, _) => go(S::Quiescing { why, running, doubtful }, &[]),
        (true, true) => go(S::Failed(why), &[F::QuarantineSlots]),
        (true, false) => go(S::Failed(why), &[F::ReleaseSlots]),
    }
}

#[cfg(test)]
mod tests;

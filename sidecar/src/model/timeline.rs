//! One transfer's way through its stages, and what is known about the read in it.
//!
//! All offsets count from the moment at which the transfer was asked for, on tokio's (monotonic) clock.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::TpRank;
use nixl::AgentName;
use side_channel::Endpoint;
use tokio::time::Instant;

use super::{Stages, TransferPhase, TransferSnapshot};

/// How a transfer came to know P's engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contact {
    /// It was known already.
    #[default]
    Known,
    /// This transfer was the one that asked its side channel.
    Asked,
    /// Another transfer had asked and the answer was not there yet.
    Waited,
}

impl Contact {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Known, Self::Asked, Self::Waited];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Asked => "asked",
            Self::Waited => "waited",
        }
    }
}

/// Staging as it was when a transfer had to wait in line for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedBehind {
    /// Slots asked for.
    pub needed: u32,
    /// Slots free at that moment.
    pub free: u32,
    /// Slots of the arena.
    pub capacity: u32,
    /// Transfers in line before it.
    pub ahead: u32,
}

/// One TP shard's read, once it has ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRead {
    /// Which shard.
    pub shard: TpRank,
    /// P's agent.
    pub agent: AgentName,
    /// Descriptors in each list given to NIXL, neighbours merged.
    pub descriptors: u64,
    /// Kernel blocks over all regions: what there would be without merging.
    pub pieces: u64,
    /// Bytes.
    pub bytes: u64,
    /// Making the descriptors.
    pub planned: Duration,
    /// Start of the post, as an offset.
    pub start: Duration,
    /// Inside NIXL's post call, which moves all bytes by itself on some transports.
    pub post_call: Duration,
    /// From the start of the post to the last byte.
    pub wire: Duration,
}

/// What is known about a transfer's source and its read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadFacts {
    /// P's side channel.
    pub address: Option<Endpoint>,
    /// How P's engine came to be known.
    pub contact: Contact,
    /// Staging at the time, if it had to be waited for.
    pub queued_behind: Option<QueuedBehind>,
    /// One per TP shard whose read has ended well.
    pub shards: Vec<ShardRead>,
    /// The comparison with the source, if one was asked for.
    pub digests: Option<DigestFacts>,
}

/// What is known about a comparison with the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DigestFacts {
    /// Logical blocks to be compared.
    pub blocks: u32,
    /// Their bytes, all TP shards; 0 until P's sidecar has answered.
    pub bytes: u64,
    /// From the question to P's sidecar to its answer.
    pub source: Option<Duration>,
    /// Digesting what has landed, and comparing.
    pub compared: Option<Duration>,
}

impl ReadFacts {
    /// Descriptors over all shards.
    pub fn descriptors(&self) -> u64 {
        self.shards.iter().map(|shard| shard.descriptors).sum()
    }

    /// Kernel blocks over all regions and shards: descriptors if none had been merged.
    pub fn pieces(&self) -> u64 {
        self.shards.iter().map(|shard| shard.pieces).sum()
    }

    /// Bytes over all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// The shard that took longest on the wire.
    pub fn slowest(&self) -> Option<&ShardRead> {
        self.shards.iter().max_by_key(|shard| shard.wire)
    }
}

/// One stage of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The stage's name.
    pub stage: &'static str,
    /// When it began, as an offset.
    pub start: Duration,
    /// How long it took, or has taken so far.
    pub duration: Duration,
    /// It goes on.
    pub running: bool,
}

impl TransferSnapshot {
    /// The stages that it has got to, in order, as seen at `now`.
    pub fn timeline(&self, now: Instant) -> Vec<Span> {
        let ended = matches!(self.state, TransferPhase::Done | TransferPhase::Failed);
        let elapsed = now.saturating_duration_since(self.started);
        let span = |((stage, start), (_, time)): ((_, Option<Duration>), (_, Option<Duration>))| {
            let start = start?;
            let running = time.is_none();
            // A stage without an end of a transfer that has ended: nobody knows when it was over (D never came).
            let time = if running && ended { None } else { Some(time.unwrap_or(elapsed.saturating_sub(start))) };
            Some(Span { stage, start, duration: time?, running })
        };
        self.starts.named().into_iter().zip(self.stages.named()).filter_map(span).collect()
    }

    /// [`TransferSnapshot::total`], with the time that the stage under way has taken so far.
    pub fn total_so_far(&self, now: Instant) -> Duration {
        let before_receipt = |span: &Span| !matches!(span.stage, "landed_idle" | "collect");
        self.timeline(now).iter().filter(|span| before_receipt(span)).map(|span| span.duration).sum()
    }

    /// The offset of a moment.
    pub(crate) fn offset(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.started)
    }

    /// The facts about the read, to be added to.
    pub(crate) fn facts_mut(&mut self) -> &mut ReadFacts {
        Arc::make_mut(&mut self.read)
    }

    /// It has failed: the stage that it was in ends now.
    pub(crate) fn close_open_stage(&mut self, now: Instant) {
        let offset = self.offset(now);
        for ((_, start), slot) in self.starts.named().into_iter().zip(self.stages.slots()).rev() {
            let Some(start) = start else { continue };
            if slot.is_none() {
                *slot = Some(offset.saturating_sub(start));
            }
            return;
        }
    }
}

impl Stages {
    fn slots(&mut self) -> [&mut Option<Duration>; 7] {
        [
            &mut self.queued,
            &mut self.handshake,
            &mut self.post,
            &mut self.wire,
            &mut self.verify,
            &mut self.landed_idle,
            &mut self.collect,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv::ids::{AttemptId, DpRank, EngineId, EngineRequestId, TransferId};

    const fn ms(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms))
    }

    fn on_the_wire(started: Instant) -> TransferSnapshot {
        TransferSnapshot {
            transfer: TransferId::new("t"),
            attempt: AttemptId::new("a"),
            request_label: String::new(),
            dp_rank: DpRank(0),
            state: TransferPhase::InFlight,
            blocks: 1,
            bytes: 1,
            stages: Stages { queued: ms(1), handshake: ms(2), post: ms(1), ..Stages::default() },
            starts: Stages { queued: ms(0), handshake: ms(1), post: ms(3), wire: ms(4), ..Stages::default() },
            read: Arc::default(),
            source_engine: EngineId::new("p"),
            source_request: EngineRequestId::new("r"),
            virtual_request: None,
            collected_by: None,
            freed: None,
            failure: None,
            started,
            trace: None,
        }
    }

    #[test]
    fn the_stage_under_way_is_shown_with_its_time_so_far() {
        let started = Instant::now();
        let shown = on_the_wire(started);
        let now = started + Duration::from_millis(44);
        let spans = shown.timeline(now);
        assert_eq!(spans.iter().map(|span| span.stage).collect::<Vec<_>>(), ["queued", "handshake", "post", "wire"]);
        let wire =
            Span { stage: "wire", start: Duration::from_millis(4), duration: Duration::from_millis(40), running: true };
        assert_eq!(spans[3], wire);
        assert_eq!(shown.total_so_far(now), Duration::from_millis(44));
        assert_eq!(shown.total(), Duration::from_millis(4));
    }

    #[test]
    fn a_failure_ends_the_stage_that_it_came_in() {
        let started = Instant::now();
        let mut shown = on_the_wire(started);
        shown.close_open_stage(started + Duration::from_millis(20));
        shown.state = TransferPhase::Failed;
        assert_eq!(shown.stages.wire, ms(16));
        assert!(shown.stages.verify.is_none());
        let later = started + Duration::from_secs(9);
        assert!(shown.timeline(later).iter().all(|span| !span.running));
    }
}

//! Comparing what has landed with what P holds: P's sidecar is asked as the transfer begins, its digests are compared before the receipt.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use kv::digest::{Chosen, Verify, pages_per_block};
use kv::ids::{BlockId, EngineId, EngineRequestId, TransferId};
use kv::layout::KvLayout;
use kv::transfer::{Event as E, SourceDigest, State};
use nixl::AccessError;
use telemetry::trace::Context;
use tokio::time::Instant;
use xxhash_rust::xxh64::xxh64;

use super::jobs::{self, Event};
use super::stage::Stage;
use super::{Rank, answer};
use crate::digest::hash::{digest_pages, over_all};
use crate::digest::reader::Digester;
use crate::digest::source::{SourceDigests, SourceError};
use crate::digest::{DigestAsk, DigestError, Digests, MOST_DIGESTS};
use crate::http::peer_of;
use crate::model::counters::add;
use crate::model::{DigestFacts, Landed, ParamsProblem, ReceiptDigest, Role, StartTransfer, TransferError};
use crate::staging::Arena;

/// What a transfer's comparison needs.
#[derive(Debug)]
pub(super) struct Verification {
    verify: Verify,
    chosen: Chosen,
    sidecar: Uri,
    source: Option<Arc<Digests>>,
}

impl Verification {
    /// What the machine is told at the start.
    pub(super) fn wanted(this: Option<&Self>) -> SourceDigest {
        if this.is_some() { SourceDigest::Awaited } else { SourceDigest::NotWanted }
    }
}

/// What landed is not what P holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Differs {
    /// Pages that differ.
    pub differing: usize,
    /// Pages compared.
    pub compared: usize,
}

/// How a comparison ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// None was asked for, or all are equal.
    Agrees(Option<Duration>),
    /// They are not.
    Differs(Differs),
    /// It could not be made.
    Failed,
}

impl Rank {
    /// What is to be compared: what the flag asks for or the request, whichever is more.
    pub(super) fn verification(
        &self,
        transfer: &TransferId,
        start: &StartTransfer,
    ) -> Result<Option<Verification>, TransferError> {
        let verify = self.shared.config.verify.max(start.verify);
        // Transfer ids are random, and everyone who looks at one later can make the same choice again.
        let seed = xxh64(transfer.as_str().as_bytes(), 0);
        let Some(chosen) = Chosen::new(verify, &start.params.remote_block_ids, seed) else { return Ok(None) };
        let sidecar = start.source_sidecar.clone();
        let sidecar = sidecar.ok_or(TransferError::ParamsInvalid(ParamsProblem::NoSourceSidecar))?;
        if let Some(peer) = peer_of(&sidecar) {
            self.shared.config.peers.certainly(&peer).map_err(TransferError::PeerNotAllowed)?;
        }
        Ok(Some(Verification { verify, chosen, sidecar, source: None }))
    }

    /// Asks P's sidecar, beside everything else.
    pub(super) fn ask_source(&mut self, transfer: &TransferId) {
        let Some(stage) = &self.stage else { return };
        let Some(active) = stage.active.get(transfer) else { return };
        let Some(verification) = &active.verification else { return };
        let layouts: Vec<_> = stage.session.shards.iter().map(|shard| Arc::clone(&shard.engine)).collect();
        let blocks = verification.chosen.blocks(&active.params.remote_block_ids);
        let question = Question {
            sources: Arc::clone(&self.shared.sources),
            sidecar: verification.sidecar.clone(),
            engine: active.params.remote_engine_id.clone(),
            request: active.params.remote_request_id.clone(),
            blocks,
            layouts,
            deadline: active.deadline,
            trace: self.records.get(transfer).and_then(|shown| Some(shown.trace?.context)),
        };
        let count = u32::try_from(verification.chosen.count()).unwrap_or(u32::MAX);
        let (transfer, gave_up, events) = (transfer.clone(), active.gave_up.clone(), self.events.clone());
        self.records.change(&transfer, |shown| {
            shown.facts_mut().digests = Some(DigestFacts { blocks: count, ..DigestFacts::default() });
        });
        self.shared.tasks.spawn(async move {
            let asked = Instant::now();
            let answer = tokio::select! {
                answer = question.answer() => answer,
                () = gave_up.cancelled() => return,
            };
            jobs::report(&events, Event::Sourced { transfer, answer, took: asked.elapsed() }).await;
        });
    }

    /// P's sidecar has answered, or not.
    pub(super) fn on_sourced(&mut self, transfer: &TransferId, answer: Result<Digests, TransferError>, took: Duration) {
        let Some(active) = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer)) else { return };
        let Some(verification) = &mut active.verification else { return };
        match answer {
            Ok(digests) => {
                let bytes = digests.bytes;
                verification.source = Some(Arc::new(digests));
                self.records.change(transfer, |shown| {
                    if let Some(facts) = &mut shown.facts_mut().digests {
                        (facts.bytes, facts.source) = (bytes, Some(took));
                    }
                });
                self.drive(transfer, E::SourceDigested);
            }
            Err(error) => {
                tracing::warn!(transfer_id = %transfer, dp_rank = %self.own.dp_rank, %error, "no source digests");
                active.error.get_or_insert(error);
                self.drive(transfer, E::SourceUndigested);
            }
        }
    }

    /// What the receipt says of the digests that are about to be compared.
    pub(super) fn receipt_digest(verification: Option<&Verification>) -> Option<ReceiptDigest> {
        let verification = verification?;
        let source = verification.source.as_ref()?;
        Some(ReceiptDigest {
            verify: verification.verify,
            blocks: u32::try_from(verification.chosen.count()).unwrap_or(u32::MAX),
            bytes: source.bytes,
            value: over_all(&source.shards),
        })
    }

    /// The comparison that a transfer needs, if any.
    pub(super) fn comparison(stage: &Stage, transfer: &TransferId) -> Option<Comparison> {
        let active = stage.active.get(transfer)?;
        let verification = active.verification.as_ref()?;
        Some(Comparison {
            arenas: stage.arenas(),
            slots: verification.chosen.slots(active.assignment.as_ref()?),
            source: Arc::clone(verification.source.as_ref()?),
        })
    }

    /// What landed was compared and put on record.
    pub(super) fn on_verified(&mut self, landed: Arc<Landed>, compared: Compared) {
        let transfer = &landed.transfer;
        let (peer, _) = self.source_of(transfer);
        let active = self.stage.as_mut().and_then(|stage| stage.active.get_mut(transfer));
        let Some(active) = active.filter(|active| matches!(active.state, State::Verifying { .. })) else {
            // It was given up meanwhile, and its receipt with it.
            if matches!(compared, Compared::Agrees(_)) {
                self.shared.tasks.spawn(jobs::withdraw(landed, Arc::clone(&self.shared.receipts)));
            }
            return;
        };
        let bytes = active.verification.as_ref().and_then(|verification| verification.source.as_ref());
        let bytes = bytes.map_or(0, |source| source.bytes);
        let event = match compared {
            Compared::Agrees(took) => {
                add(&self.shared.counters.compared_bytes, bytes);
                self.records.change(transfer, |shown| {
                    if let Some(facts) = &mut shown.facts_mut().digests {
                        facts.compared = took;
                    }
                });
                E::Verified
            }
            Compared::Differs(Differs { differing, compared }) => {
                add(&self.shared.counters.compared_bytes, bytes);
                tracing::error!(
                    alert = "digest_mismatch",
                    transfer_id = %transfer,
                    dp_rank = %self.own.dp_rank,
                    peer = %peer,
                    differing,
                    compared,
                    "what landed is not what the prefill engine holds"
                );
                active.error = Some(TransferError::DigestMismatch { peer, differing, compared });
                E::DigestMismatch
            }
            Compared::Failed => {
                active.error = Some(TransferError::NotCompared);
                E::DigestMismatch
            }
        };
        self.drive(transfer, event);
    }

    /// Digests of this rank's own engine's blocks (prefill role).
    pub(super) fn take_digests(
        &self,
        ask: DigestAsk,
        reply: tokio::sync::oneshot::Sender<Result<Digests, DigestError>>,
    ) {
        let digester = match self.digester(&ask.engine) {
            Ok(digester) => digester,
            Err(error) => return answer(reply, Err(error)),
        };
        let counters = Arc::clone(&self.shared.counters);
        self.shared.tasks.spawn(async move {
            let taken = digester.digest(&ask, || !reply.is_closed()).await;
            if let Ok(digests) = &taken {
                add(&counters.served_digest_bytes, digests.bytes);
            }
            answer(reply, taken);
        });
    }

    fn digester(&self, engine: &EngineId) -> Result<Arc<Digester>, DigestError> {
        if self.shared.config.role != Role::Prefill {
            return Err(DigestError::WrongRole);
        }
        let (state, reasons) = self.readiness();
        let not_ready = TransferError::RankNotReady { rank: self.own.dp_rank, state, reasons };
        let (Some(identity), Some(digester)) = (&self.engine.identity, self.handles.digester()) else {
            return Err(not_ready.into());
        };
        if identity.engine != *engine {
            return Err(DigestError::UnknownEngine(engine.clone()));
        }
        Ok(digester)
    }
}

/// All that is asked of P's sidecar for one transfer, in as many questions as it takes.
#[derive(Debug)]
struct Question {
    sources: Arc<dyn SourceDigests>,
    sidecar: Uri,
    engine: EngineId,
    request: EngineRequestId,
    blocks: Vec<Vec<BlockId>>,
    /// D's layouts, which are P's but for addresses.
    layouts: Vec<Arc<KvLayout>>,
    deadline: Instant,
    trace: Option<Context>,
}

impl Question {
    async fn answer(&self) -> Result<Digests, TransferError> {
        let mut all = Digests { shards: vec![Vec::new(); self.layouts.len()], bytes: 0 };
        for blocks in parts(&self.blocks, &self.layouts, MOST_DIGESTS) {
            let (engine, request) = (self.engine.clone(), self.request.clone());
            let ask = DigestAsk { engine, request, blocks, deadline: self.deadline, trace: self.trace };
            let answer = self.sources.ask(&self.sidecar, &ask).await.and_then(|answer| self.checked(&ask, answer));
            let answer = answer.map_err(|source| TransferError::NoSourceDigest {
                sidecar: self.sidecar.clone(),
                source: Arc::new(source),
            })?;
            all.bytes = all.bytes.saturating_add(answer.bytes);
            all.shards.iter_mut().zip(answer.shards).for_each(|(all, shard)| all.extend(shard));
        }
        Ok(all)
    }

    /// Fewer digests than pages would let the rest pass unseen.
    fn checked(&self, ask: &DigestAsk, answer: Digests) -> Result<Digests, SourceError> {
        let of = |layout: &Arc<KvLayout>| crate::digest::digests_of(&ask.blocks, std::slice::from_ref(layout));
        let as_many = answer.shards.iter().map(Vec::len).eq(self.layouts.iter().map(of));
        if as_many { Ok(answer) } else { Err(SourceError::Answer("it has not as many digests as were asked for")) }
    }
}

/// Cuts a question into parts of at most `most` digests, at least a block each, in order.
fn parts(blocks: &[Vec<BlockId>], layouts: &[Arc<KvLayout>], most: usize) -> Vec<Vec<Vec<BlockId>>> {
    let empty = || vec![Vec::new(); blocks.len()];
    let (mut parts, mut part, mut held) = (Vec::new(), empty(), 0_usize);
    for (index, (group, blocks)) in (0_u16..).zip(blocks).enumerate() {
        let each: usize = layouts.iter().map(|layout| pages_per_block(layout, group)).sum();
        for block in blocks {
            if held > 0 && held.saturating_add(each) > most {
                parts.push(std::mem::replace(&mut part, empty()));
                held = 0;
            }
            if let Some(group) = part.get_mut(index) {
                group.push(*block);
            }
            held = held.saturating_add(each);
        }
    }
    if held > 0 {
        parts.push(part);
    }
    parts
}

/// What is compared, for a worker thread.
#[derive(Debug)]
pub(crate) struct Comparison {
    arenas: Vec<Arena>,
    slots: Vec<Vec<BlockId>>,
    source: Arc<Digests>,
}

impl Comparison {
    /// What there is to read here, at most, as work (`nixl::bulk`).
    pub(crate) fn bytes(&self) -> u64 {
        let blocks = self.slots.iter().map(Vec::len).fold(0, usize::saturating_add);
        let each = self.arenas.iter().map(|arena| arena.layout.slot_bytes()).fold(0, u64::saturating_add);
        let bytes = each.saturating_mul(u64::try_from(blocks).unwrap_or(u64::MAX));
        self.arenas.iter().map(|arena| arena.work(bytes)).max().unwrap_or(bytes)
    }

    /// Digests what landed and compares.
    ///
    /// # Errors
    /// [`AccessError`]: a bug.
    pub(crate) fn make(&self) -> Result<Result<(), Differs>, AccessError> {
        let (mut differing, mut compared) = (0_usize, 0_usize);
        for (arena, source) in self.arenas.iter().zip(&self.source.shards) {
            let pages = kv::digest::pages(&arena.layout, &self.slots);
            let (ours, _) = digest_pages(&arena.memory, &arena.layout, &pages)?;
            compared = compared.saturating_add(ours.len().max(source.len()));
            let unequal = ours.iter().zip(source).filter(|(ours, theirs)| ours != theirs).count();
            differing = differing.saturating_add(unequal).saturating_add(ours.len().abs_diff(source.len()));
        }
        let shards = self.arenas.len().abs_diff(self.source.shards.len());
        Ok(if differing == 0 && shards == 0 && compared > 0 { Ok(()) } else { Err(Differs { differing, compared }) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv::layout::{MemoryKind, RegionGroup, RegionLayout};

    fn layout(regions: usize) -> Arc<KvLayout> {
        let region = RegionLayout {
            name: String::new(),
            base: 0,
            block_len: 64,
            block_stride: 64,
            num_blocks: 8,
            group: RegionGroup::Shared,
        };
        Arc::new(KvLayout {
            regions: vec![region; regions],
            kernel_per_logical: 1,
            kernel_block_tokens: 16,
            layout: "LBHNC".to_owned(),
            backend: "X".to_owned(),
            memory: MemoryKind::Dram,
            device: 0,
        })
    }

    #[test]
    fn a_long_question_is_cut_and_keeps_its_order() {
        let ids = |range: std::ops::Range<u32>| range.map(BlockId).collect::<Vec<_>>();
        let blocks = [ids(0..5), ids(10..12)];
        let cut = parts(&blocks, &[layout(2), layout(1)], 9);
        assert_eq!(cut, [[ids(0..3), ids(0..0)], [ids(3..5), ids(10..11)], [ids(0..0), ids(11..12)]]);
        assert_eq!(parts(&blocks, &[layout(2)], 1).len(), 7, "a block at least");
        assert!(parts(&[Vec::new()], &[layout(2)], 9).is_empty());
    }
}

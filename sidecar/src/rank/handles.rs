//! The prefill role: which finished prefills are pinned in the engine, as far as the router has said, and letting go of abandoned ones.
//!
//! The engine is told "done" at most once per request from here (invariant N): D's sidecar tells it after a good transfer, this one only
//! when the router gives a prefill up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv::ids::{DpRank, EngineId, EngineRequestId};
use kv::lease::Lease;
use kv::readiness::RankState;
use nixl::Fabric;
use tokio::sync::oneshot;
use tokio::time::Instant;
use vllm_wire::notif;

use super::door::Door;
use super::jobs::{self, Event};
use super::stage::Stage;
use super::telling::{Line, Telling};
use super::{Rank, Wake, answer};
use crate::digest::reader::Digester;
use crate::model::counters::add;
use crate::model::{HandleError, HandleSnapshot, HandleState, LetGo, ParamsProblem, ReportHandle, Role, TransferError};
use crate::session::Teller;

/// Handles that are kept per rank; beyond that the oldest is forgotten (its lease frees it in the engine all the same).
const KEEP: usize = 8192;
/// Block ids that are kept per rank, over all handles: 2 MiB.
const KEEP_IDS: usize = 524_288;

#[derive(Debug)]
struct Handle {
    engine: EngineId,
    blocks: u32,
    block_ids: Option<Arc<[Vec<u32>]>>,
    bytes: u64,
    lease: Lease,
    state: HandleState,
    /// Its place in the order in which they came.
    came: u64,
}

/// The handles of one rank. Nothing here looks at all of them but who lists them.
#[derive(Debug, Default)]
pub(super) struct Handles {
    teller: Option<Teller>,
    digester: Option<Arc<Digester>>,
    handles: BTreeMap<EngineRequestId, Handle>,
    order: BTreeMap<u64, EngineRequestId>,
    /// Handles that ever came.
    came: u64,
    /// Handles that are pinned.
    pinned: usize,
    /// Block ids kept over all handles.
    ids: usize,
}

impl Handles {
    /// A new engine: the old one's handles went with it.
    pub(super) fn adopt(&mut self, teller: Teller, digester: Digester) {
        self.handles.clear();
        self.order.clear();
        self.pinned = 0;
        self.ids = 0;
        self.teller = Some(teller);
        self.digester = Some(Arc::new(digester));
    }

    /// Who digests the engine's blocks.
    pub(super) fn digester(&self) -> Option<Arc<Digester>> {
        self.digester.clone()
    }

    /// The same, to be ended.
    pub(super) fn take_digester(&mut self) -> Option<Arc<Digester>> {
        self.digester.take()
    }

    /// The agents, to be closed.
    pub(super) fn take_agents(&mut self) -> Vec<Arc<dyn Fabric>> {
        self.teller.take().map(|teller| teller.fabric).into_iter().collect()
    }

    /// Handles that are pinned.
    pub(super) fn pinned(&self) -> usize {
        self.pinned
    }

    /// Changes a handle's state.
    fn turn(&mut self, request: &EngineRequestId, state: HandleState) {
        let Some(handle) = self.handles.get_mut(request) else { return };
        self.pinned -= usize::from(handle.state == HandleState::Pinned);
        handle.state = state;
        self.pinned += usize::from(state == HandleState::Pinned);
    }

    /// Keeps a handle that is not known; the oldest goes when there are too many.
    fn insert(&mut self, request: EngineRequestId, mut handle: Handle) -> Option<EngineRequestId> {
        self.remove(&request);
        handle.block_ids = handle.block_ids.filter(|ids| self.ids.saturating_add(count(ids)) <= KEEP_IDS);
        handle.came = self.came;
        self.came += 1;
        self.ids = self.ids.saturating_add(handle.kept_ids());
        self.pinned += usize::from(handle.state == HandleState::Pinned);
        self.order.insert(handle.came, request.clone());
        self.handles.insert(request, handle);
        if self.order.len() <= KEEP {
            return None;
        }
        let (_, oldest) = self.order.pop_first()?;
        self.remove(&oldest);
        Some(oldest)
    }

    fn remove(&mut self, request: &EngineRequestId) -> bool {
        let Some(removed) = self.handles.remove(request) else { return false };
        self.order.remove(&removed.came);
        self.ids = self.ids.saturating_sub(removed.kept_ids());
        self.pinned -= usize::from(removed.state == HandleState::Pinned);
        true
    }
}

impl Handle {
    fn kept_ids(&self) -> usize {
        self.block_ids.as_deref().map_or(0, count)
    }
}

fn count(ids: &[Vec<u32>]) -> usize {
    ids.iter().map(Vec::len).sum()
}

impl Rank {
    /// The engine's workers, each with the blob that it is loaded from.
    fn own_workers(&self) -> Vec<(Line, Bytes)> {
        let (Some(teller), Some(identity)) = (&self.handles.teller, &self.engine.identity) else { return Vec::new() };
        let blobs = identity.shards.iter().map(|shard| shard.metadata.agent_metadata.clone());
        let lines = teller.workers.iter().map(|worker| (Arc::clone(&teller.fabric), worker.clone()));
        lines.zip(blobs).collect()
    }

    /// The engine of this rank, when handles can be kept for it.
    fn handles_engine(&self) -> Result<EngineId, HandleError> {
        if self.shared.config.role != Role::Prefill {
            return Err(HandleError::WrongRole);
        }
        match (&self.engine.identity, &self.handles.teller) {
            (Some(identity), Some(_)) => Ok(identity.engine.clone()),
            (Some(_) | None, Some(_) | None) => {
                let (state, reasons) = self.readiness();
                Err(TransferError::RankNotReady { rank: self.own.dp_rank, state, reasons }.into())
            }
        }
    }

    /// Takes note of a finished prefill.
    pub(super) fn report_handle(&mut self, report: ReportHandle) -> Result<HandleSnapshot, HandleError> {
        let ours = self.handles_engine()?;
        let theirs = report.params.remote_engine_id.clone();
        if ours != theirs {
            let problem = ParamsProblem::ForeignEngine { theirs, ours };
            return Err(TransferError::ParamsInvalid(problem).into());
        }
        let request = report.params.remote_request_id;
        if !self.handles.handles.contains_key(&request) {
            let now = Instant::now();
            let length = report.lease.unwrap_or(self.shared.config.kv_lease);
            let lease = Lease::begun(length, report.age, now.into_std());
            let blocks = u32::try_from(report.params.remote_block_ids.total()).unwrap_or(u32::MAX);
            let slot_bytes: u64 = match &self.engine.identity {
                Some(identity) => identity.shards.iter().map(|shard| shard.layout.slot_bytes()).sum(),
                None => 0,
            };
            let bytes = slot_bytes.saturating_mul(u64::from(blocks));
            let groups = report.params.remote_block_ids.groups().iter();
            let block_ids: Vec<Vec<u32>> =
                groups.map(|group| group.ids().iter().map(|block| block.0).collect()).collect();
            let block_ids = Some(Arc::from(block_ids));
            let handle = Handle { engine: ours, blocks, block_ids, bytes, lease, state: HandleState::Pinned, came: 0 };
            if let Some(forgotten) = self.handles.insert(request.clone(), handle) {
                self.timers.set(&Wake::Handle(forgotten), None);
            }
            self.timers.set(&Wake::Handle(request.clone()), Some(Instant::from_std(lease.over_at())));
        }
        let rank = self.own.dp_rank;
        let handle = self.handles.handles.get(&request);
        handle.map(|handle| show(self.own.dp_rank, &request, handle)).ok_or(HandleError::NotFound { rank, request })
    }

    /// Lets a handle go. Unless its blocks have been read, and the engine told by who read them, tells every shard of the engine that
    /// nobody will.
    pub(super) fn release_handle(
        &mut self,
        request: EngineRequestId,
        why: LetGo,
        reply: oneshot::Sender<Result<(), HandleError>>,
    ) {
        let engine = match self.handles_engine() {
            Ok(engine) => engine,
            Err(error) => return answer(reply, Err(error)),
        };
        match why {
            LetGo::Read => {
                self.forget_handle(&request);
                return answer(reply, Ok(()));
            }
            LetGo::Abandoned => {}
        }
        let known = self.handles.handles.get(&request);
        if known.as_ref().is_some_and(|handle| handle.state == HandleState::Released) {
            return answer(reply, Ok(()));
        }
        let now = Instant::now();
        match known {
            Some(_) => self.handles.turn(&request, HandleState::Released),
            // Remembered all the same, so that it is told once only.
            None => {
                let lease = Lease::begun(self.shared.config.kv_lease, Duration::ZERO, now.into_std());
                let state = HandleState::Released;
                let block_ids = Some(Arc::from([]));
                let handle = Handle { engine, blocks: 0, block_ids, bytes: 0, lease, state, came: 0 };
                if let Some(forgotten) = self.handles.insert(request.clone(), handle) {
                    self.timers.set(&Wake::Handle(forgotten), None);
                }
            }
        }
        self.timers.set(&Wake::Handle(request.clone()), Some(now + self.shared.config.kv_lease));
        let until = self.handles.handles.get(&request).map_or(now, |handle| Instant::from_std(handle.lease.over_at()));
        let (message, events, stop) = (notif::done(&request, 1), self.events.clone(), self.shared.stop.clone());
        let to = self.own_workers();
        let mut telling = Telling { to, message, until, stop, lost: 0 };
        self.shared.tasks.spawn(async move {
            telling.once().await;
            answer(reply, Ok(()));
            let failed = telling.rest().await;
            jobs::report(&events, Event::HandleReleased { request, failed }).await;
        });
    }

    pub(super) fn on_handle_released(&mut self, request: &EngineRequestId, failed: u64) {
        let shards = u64::from(self.shared.config.tp_size);
        add(&self.shared.counters.told, shards.saturating_sub(failed));
        add(&self.shared.counters.tells_failed, failed);
        tracing::debug!(dp_rank = %self.own.dp_rank, %request, failed, "abandoned prefill released");
    }

    /// A handle's lease is over, or it has been shown for long enough after its end.
    pub(super) fn handle_due(&mut self, request: &EngineRequestId) {
        let Some(handle) = self.handles.handles.get(request) else { return };
        match handle.state {
            HandleState::Pinned => {
                add(&self.shared.counters.leaked_handles, 1);
                tracing::warn!(
                    alert = "handle_leaked",
                    dp_rank = %self.own.dp_rank,
                    engine_id = %handle.engine,
                    %request,
                    blocks = handle.blocks,
                    lease_ms = handle.lease.length().as_millis(),
                    "a block handle outlived its lease: nobody read it or gave it up"
                );
                let forget = Instant::now() + handle.lease.length();
                self.handles.turn(request, HandleState::Leaked);
                self.timers.set(&Wake::Handle(request.clone()), Some(forget));
            }
            HandleState::Leaked
            | HandleState::Released
            | HandleState::Filling
            | HandleState::Quiescing
            | HandleState::Landed
            | HandleState::Ending => self.forget_handle(request),
        }
    }

    fn forget_handle(&mut self, request: &EngineRequestId) {
        if self.handles.remove(request) {
            self.timers.set(&Wake::Handle(request.clone()), None);
        }
    }

    /// P's handles as they are shown.
    pub(super) fn pinned_handles(&self) -> Vec<HandleSnapshot> {
        self.handles.handles.iter().map(|(request, handle)| show(self.own.dp_rank, request, handle)).collect()
    }

    /// The rank's state and why.
    pub(super) fn readiness(&self) -> (RankState, Vec<String>) {
        let mut facts = self.engine.facts(self.shared.gate.is_cancelled());
        if let Some(why) = self.own.door.as_ref().and_then(Door::closed_because) {
            facts.blocked_by = Some(why.to_owned());
        }
        if self.stage.as_ref().is_some_and(Stage::is_lost) {
            facts.blocked_by = Some("all of its staging is in quarantine until the sidecar restarts".to_owned());
        }
        facts.assess()
    }
}

fn show(dp_rank: DpRank, request: &EngineRequestId, handle: &Handle) -> HandleSnapshot {
    HandleSnapshot {
        dp_rank,
        engine_id: handle.engine.clone(),
        request_id: request.clone(),
        blocks: handle.blocks,
        block_ids: handle.block_ids.clone(),
        bytes: handle.bytes,
        lease_left: handle.lease.left(Instant::now().into_std()),
        transfer: None,
        state: handle.state,
    }
}

//! Who may read whose KV, until when, and who was told: invariants G, L, N and I.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv::ids::DpRank;
use nixl::AgentName;
use sidecar::model::{Landed, ReceiptSink, Recorded};
use sim::request_log::{Line, Lines, RequestLog};
use vllm_wire::notif::{self, Notif};
use vllm_wire::params::KvTransferParams;

use super::{Evidence, Record};
use crate::hosts::Host;

/// A virtual engine and its name for a request.
pub type VirtualRequest = (String, String);

/// What is known of KV on its way.
#[derive(Debug, Default)]
pub(super) struct Handoff {
    lease: Duration,
    receipts: BTreeMap<VirtualRequest, Given>,
    /// By P's name for the request.
    prefills: BTreeMap<String, Prefill>,
    /// Who has told a worker of a prefill engine that a request is done.
    told: BTreeMap<(AgentName, String), Vec<Host>>,
}

/// A receipt: for which rank, beside which engine, and of which prefill.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    rank: DpRank,
    host: Host,
    source: String,
    /// P may have ended its lease before.
    is_stale: bool,
}

/// What a prefill engine has answered.
#[derive(Debug)]
struct Prefill {
    /// Of which client's request.
    tag: Option<String>,
    /// Until when P keeps its blocks, if all heartbeats that were sent get there.
    kept_until: Duration,
}

impl Evidence {
    /// How long a prefill engine keeps blocks for a reader.
    pub fn lease(&self, lease: Duration) {
        self.0.lock().handoff.lease = lease;
    }

    /// A prefill engine answers.
    pub fn prefilled(&self, host: Host, tag: Option<&str>, params: &serde_json::Value) {
        let Some(request) = params.get("remote_request_id").and_then(|id| id.as_str()) else { return };
        let mut record = self.0.lock();
        record.write(&format!("{host} has prefilled {request}: blocks {}", params["remote_block_ids"]));
        let kept_until = record.time() + record.handoff.lease;
        record.handoff.prefills.insert(request.to_owned(), Prefill { tag: tag.map(str::to_owned), kept_until });
    }

    /// A decode engine is asked to read remote KV (invariant G), which must be the same request's (invariant I) and have been read within
    /// P's lease (invariant L). A sidecar whose question came late does not know how old P's lease is; the router does.
    pub fn decode(&self, host: Host, rank: DpRank, tag: Option<&str>, params: &KvTransferParams) {
        let key = virtual_request(params);
        let mut record = self.0.lock();
        record.decodes += 1;
        let given = record.handoff.receipts.get(&key).cloned();
        record.write(&format!("{host}@{rank} is to decode {}", key.1));
        match given {
            Some(given) if given.rank == rank && given.host == host => {
                let source = record.handoff.prefills.get(&given.source).map(|prefill| prefill.tag.clone());
                if source.as_ref().map(Option::as_deref) != Some(tag) {
                    let how = format!("{host}@{rank} decodes {tag:?} with {}, the KV of {source:?}", given.source);
                    record.broken("I", &how);
                }
                if given.is_stale {
                    let how = format!("{host}@{rank} decodes {tag:?} with {}, read after P's lease", given.source);
                    record.broken("L", &how);
                }
            }
            given => {
                record.without_receipt += 1;
                record.broken("G", &format!("{host}@{rank} decodes {}: its receipt is {given:?}", key.1));
            }
        }
    }

    /// A decode engine is asked to compute a request that is to be split (invariant G: no receipt, no decode).
    pub fn alone(&self, host: Host, tag: &str) {
        self.broken("G", format!("{host} is to compute {tag} alone"));
    }

    /// A message is sent from one agent to another (invariant N). Whether it arrives is not for the sender to know.
    pub fn sent(&self, from: Host, to: Option<Host>, peer: &AgentName, message: &[u8]) {
        let Some(to) = to.filter(|to| to.is_prefill_engine()) else { return };
        match notif::parse(message) {
            Ok(Notif::Done { request, .. }) => self.0.lock().told(from, to, peer, request.as_str()),
            Ok(Notif::Heartbeat { requests }) => {
                let mut record = self.0.lock();
                let (now, lease) = (record.time(), record.handoff.lease);
                for request in requests {
                    let prefill = record.handoff.prefills.get_mut(request.as_str());
                    if let Some(prefill) = prefill.filter(|prefill| prefill.kept_until >= now) {
                        prefill.kept_until = prefill.kept_until.max(now + lease * 2 / 3);
                    }
                }
            }
            Err(_) => {}
        }
    }

    /// Receipts of the sidecar beside an engine.
    pub fn receipts(&self, engine: Host) -> Arc<dyn ReceiptSink> {
        Arc::new(Receipts { evidence: self.clone(), engine })
    }

    /// The log of a decode engine, which tells of bytes that were not the request's.
    pub fn request_log(&self) -> RequestLog {
        RequestLog::to(Arc::new(Requests(self.clone())))
    }

    /// A receipt is given (invariant N).
    pub(super) fn received_receipt(&self, key: VirtualRequest, rank: DpRank, host: Host, source: &str) {
        let mut record = self.0.lock();
        let now = record.time();
        let kept_until = record.handoff.prefills.get(source).map(|prefill| prefill.kept_until);
        let is_stale = kept_until.is_none_or(|until| until < now);
        if is_stale {
            record.write(&format!("{source} has a receipt, its blocks are kept until {kept_until:?}"));
        }
        let told = record.handoff.told.iter().find(|((_, request), _)| request == source).map(|(_, by)| by.clone());
        if let Some(by) = told {
            record.broken("N", &format!("{source} is given a receipt although {by:?} have told P that it is done"));
        }
        record.handoff.receipts.insert(key, Given { rank, host, source: source.to_owned(), is_stale });
    }
}

impl Record {
    fn told(&mut self, from: Host, to: Host, peer: &AgentName, request: &str) {
        self.write(&format!("{from} tells {to} ({peer}) that {request} is done"));
        let early = !self.handoff.prefills.contains_key(request);
        let told = self.handoff.told.entry((peer.clone(), request.to_owned())).or_default();
        told.push(from);
        let told = told.clone();
        if early {
            self.broken("N", &format!("{from} tells {to} of {request}, which it has not answered"));
        }
        // A sidecar of P that is asked again has nothing to remember it by, and an engine ignores what it does not know.
        let by_decode = told.iter().filter(|from| from.is_decode_sidecar()).count();
        if by_decode > 1 || (by_decode == 1 && told.len() > 1) {
            self.broken("N", &format!("{to} is told of {request} by {told:?}"));
        }
    }
}

/// Where a decode's KV is to come from.
pub(crate) fn virtual_request(params: &KvTransferParams) -> VirtualRequest {
    (params.remote_engine_id.as_str().to_owned(), params.remote_request_id.as_str().to_owned())
}

#[derive(Debug)]
struct Receipts {
    evidence: Evidence,
    engine: Host,
}

fn key_of(landed: &Landed) -> VirtualRequest {
    let receipt = &landed.receipt;
    (receipt.virtual_engine_id.as_str().to_owned(), receipt.request_id.as_str().to_owned())
}

impl ReceiptSink for Receipts {
    fn record(&self, landed: Arc<Landed>) -> Recorded {
        let receipt = &landed.receipt;
        let (rank, source) = (receipt.dp_rank, landed.source_request.as_str());
        self.evidence.note(|| {
            let request = receipt.request_id.as_str();
            format!("receipt: {} blocks of {source} for {}@{rank} as {request}", receipt.blocks, self.engine)
        });
        self.evidence.received_receipt(key_of(&landed), rank, self.engine, source);
        Box::pin(async { Ok(()) })
    }

    fn withdraw(&self, landed: Arc<Landed>) -> Recorded {
        let mut record = self.evidence.0.lock();
        record.write(&format!("receipt withdrawn: {}", landed.receipt.request_id.as_str()));
        record.handoff.receipts.remove(&key_of(&landed));
        Box::pin(async { Ok(()) })
    }

    fn keeps(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Requests(Evidence);

impl Lines for Requests {
    fn write(&self, line: &Line<'_>) {
        let foreign = line.reused_bytes.filter(|bytes| *bytes > 0);
        if let (Some(bytes), Some(engine), Some(request)) = (foreign, line.remote_engine_id, line.remote_request_id) {
            self.0.foreign(&(engine.to_owned(), request.to_owned()), bytes);
        }
    }
}

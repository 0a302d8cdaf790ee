//! What happened, written down where it happened, and what must not have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kv::ids::DpRank;
use nixl::AgentName;
use parking_lot::Mutex;
use sidecar::model::{Landed, ReceiptSink, Recorded};
use vllm_wire::notif::{self, Notif};
use vllm_wire::params::KvTransferParams;

use crate::hosts::Host;

/// A kind of fault, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Two hosts cannot reach one another, or one not the other.
    Partition,
    /// A link takes its time.
    SlowLink,
    /// A process does nothing for a while.
    Stall,
    /// A process dies.
    Crash,
    /// A process is told to end.
    Drain,
    /// A read fails, hangs, or lands late.
    Read,
    /// A notification is lost, refused, or comes twice.
    Note,
}

impl Mark {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::SlowLink => "slow link",
            Self::Stall => "stall",
            Self::Crash => "crash",
            Self::Drain => "drain",
            Self::Read => "read",
            Self::Note => "notification",
        }
    }
}

/// The record of one run. Clones are the same record.
#[derive(Clone, Debug, Default)]
pub struct Evidence(Arc<Mutex<Record>>);

/// See [`Evidence`].
#[derive(Debug, Default)]
pub struct Record {
    /// What happened, in order.
    pub log: Vec<String>,
    /// Promises that were broken.
    pub broken: Vec<String>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Decodes that asked for remote KV.
    pub decodes: u64,
    /// Those that no receipt covers.
    pub without_receipt: u64,
    /// By virtual engine and request: for which rank, beside which engine.
    receipts: BTreeMap<(String, String), (DpRank, Host)>,
    /// Requests that prefill engines have answered.
    prefilled: BTreeSet<String>,
    /// Who has told a worker of a prefill engine that a request is done.
    told: BTreeMap<(AgentName, String), Vec<Host>>,
    now: Duration,
}

impl Evidence {
    /// The time, for those who have no clock.
    pub fn now(&self, now: Duration) {
        self.0.lock().now = now;
    }

    /// Writes down what happened.
    pub fn note(&self, text: impl FnOnce() -> String) {
        self.0.lock().write(&text());
    }

    /// Writes down a fault and counts it.
    pub fn fault(&self, mark: Mark, text: impl FnOnce() -> String) {
        let mut record = self.0.lock();
        *record.faults.entry(mark.word()).or_default() += 1;
        record.write(&format!("fault: {}: {}", mark.word(), text()));
    }

    /// A promise is broken.
    pub fn broken(&self, which: &str, how: impl Into<String>) {
        let mut record = self.0.lock();
        let text = format!("BROKEN {which}: {}", how.into());
        record.write(&text);
        record.broken.push(text);
    }

    /// Looks at the record.
    pub fn with<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&self.0.lock())
    }

    /// A prefill engine answers.
    pub fn prefilled(&self, host: Host, params: &serde_json::Value) {
        let Some(request) = params.get("remote_request_id").and_then(|id| id.as_str()) else { return };
        let mut record = self.0.lock();
        record.write(&format!("{host} has prefilled {request}: blocks {}", params["remote_block_ids"]));
        record.prefilled.insert(request.to_owned());
    }

    /// A decode engine is asked to read remote KV (invariant G).
    pub fn decode(&self, host: Host, rank: DpRank, params: &KvTransferParams) {
        let key = (params.remote_engine_id.as_str().to_owned(), params.remote_request_id.as_str().to_owned());
        let mut record = self.0.lock();
        record.decodes += 1;
        let receipt = record.receipts.get(&key).copied();
        record.write(&format!("{host}@{rank} is to decode {}", key.1));
        if receipt != Some((rank, host)) {
            record.without_receipt += 1;
            drop(record);
            self.broken("G", format!("{host}@{rank} decodes {}: its receipt is {receipt:?}", key.1));
        }
    }

    /// A message is sent from one agent to another (invariant N).
    pub fn sent(&self, from: Host, to: Option<Host>, peer: &AgentName, message: &[u8]) {
        let Some(to) = to.filter(|to| to.is_prefill_engine()) else { return };
        let Ok(Notif::Done { request, .. }) = notif::parse(message) else { return };
        let request = request.as_str().to_owned();
        let mut record = self.0.lock();
        record.write(&format!("{from} tells {to} ({peer}) that {request} is done"));
        let early = !record.prefilled.contains(&request);
        let told = record.told.entry((peer.clone(), request.clone())).or_default();
        told.push(from);
        let told = told.clone();
        drop(record);
        if early {
            self.broken("N", format!("{from} tells {to} of {request}, which it has not answered"));
        }
        // A sidecar of P that is asked again has nothing to remember it by, and an engine ignores what it does not know.
        let by_decode = told.iter().filter(|from| from.is_decode_sidecar()).count();
        if by_decode > 1 || (by_decode == 1 && told.len() > 1) {
            self.broken("N", format!("{to} is told of {request} by {told:?}"));
        }
    }

    /// Receipts of the sidecar beside an engine.
    pub fn receipts(&self, engine: Host) -> Arc<dyn ReceiptSink> {
        Arc::new(Receipts { evidence: self.clone(), engine })
    }
}

impl Record {
    fn write(&mut self, text: &str) {
        let now = turmoil::sim_elapsed().unwrap_or(self.now);
        self.log.push(format!("{:>6} ms  {text}", now.as_millis()));
    }
}

#[derive(Debug)]
struct Receipts {
    evidence: Evidence,
    engine: Host,
}

impl ReceiptSink for Receipts {
    fn record(&self, landed: Arc<Landed>) -> Recorded {
        let receipt = &landed.receipt;
        let mut record = self.evidence.0.lock();
        record.write(&format!(
            "receipt: {} blocks for {}@{} as {}",
            receipt.blocks,
            self.engine,
            receipt.dp_rank,
            receipt.request_id.as_str()
        ));
        let key = (receipt.virtual_engine_id.as_str().to_owned(), receipt.request_id.as_str().to_owned());
        record.receipts.insert(key, (receipt.dp_rank, self.engine));
        Box::pin(async { Ok(()) })
    }

    fn withdraw(&self, landed: Arc<Landed>) -> Recorded {
        let receipt = &landed.receipt;
        let mut record = self.evidence.0.lock();
        record.write(&format!("receipt withdrawn: {}", receipt.request_id.as_str()));
        let key = (receipt.virtual_engine_id.as_str().to_owned(), receipt.request_id.as_str().to_owned());
        record.receipts.remove(&key);
        Box::pin(async { Ok(()) })
    }

    fn keeps(&self) -> bool {
        true
    }
}

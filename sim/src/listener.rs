//! The side-channel listener of one rank: answers for each of its TP shards, and can be as fragile as vLLM's.
//!
//! Source: `docs/vllm-nixl-protocol.md` §1.2, §1.3. vLLM's listener thread ends for good at the first question that it does
//! not expect; with `fragile` ours does too, which lets a test prove that nobody asks wrongly.

use std::collections::BTreeMap;

use kv::ids::{EngineId, TpRank};
use side_channel::{Answer, Answered};
use vllm_wire::handshake::{self, Payload};
use vllm_wire::versions::Version;

use crate::identity::Identity;

/// Answers one rank's side channel.
#[derive(Debug)]
pub struct Listener {
    engine: EngineId,
    version: &'static Version,
    payloads: BTreeMap<TpRank, Payload>,
    fragile: bool,
    started: tokio::time::Instant,
}

impl Listener {
    /// A listener of an engine that knows the payload of every TP shard.
    pub fn new(identity: &Identity, payloads: BTreeMap<TpRank, Payload>, fragile: bool) -> Self {
        let (engine, version) = (identity.engine.clone(), identity.version);
        Self { engine, version, payloads, fragile, started: tokio::time::Instant::now() }
    }

    fn unexpected(&self, what: &'static str) -> Answered {
        let engine_id = &self.engine;
        if self.fragile {
            tracing::error!(%engine_id, what, "the side-channel listener dies of an unexpected question");
            Answered::Die
        } else {
            tracing::warn!(%engine_id, what, "an unexpected side-channel question; vLLM's listener would die of it");
            Answered::Ignore
        }
    }
}

impl Answer for Listener {
    fn answer(&self, request: &[u8]) -> Answered {
        let Ok(asked) = handshake::parse_request(self.version, request) else { return self.unexpected("malformed") };
        let payload = if asked.pp == 0 { self.payloads.get(&asked.tp) } else { None };
        let Some(payload) = payload else { return self.unexpected("unknown rank") };
        let clock = self.started.elapsed().as_secs_f64();
        Answered::Reply(handshake::reply(payload, clock))
    }

    fn ill_framed(&self) -> Answered {
        self.unexpected("wrong number of frames")
    }
}

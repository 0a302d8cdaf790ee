//! Invariant G as a type: a decode is dispatched with a [`DecodeTicket`] only, and a ticket is made from the receipt for
//! exactly that rank and request, or from the proof that the operator has chosen to go without.

use std::borrow::Cow;

use bytes::Bytes;
use kv::ids::{AttemptId, DpRank, EngineId, TransferId};
use serde::Deserialize;
use vllm_wire::params::RawParams;

use crate::config::Direct;
use crate::faults::SkippedGate;
use crate::targets::{PodId, Target};

/// What was asked of a sidecar: what its receipt must be for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) attempt: AttemptId,
    pub(crate) pod: PodId,
    pub(crate) rank: DpRank,
    /// The engine that prefilled.
    pub(crate) source_engine: EngineId,
}

/// A sidecar's receipt, together with the parameters it came with and the question that it answers.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) asked: Asked,
    pub(crate) transfer: TransferId,
    pub(crate) rank: DpRank,
    pub(crate) source_engine: EngineId,
    /// What it calls its virtual engine and the request, to be found in the parameters: parts of the answer that they came with.
    pub(crate) virtual_engine: Bytes,
    pub(crate) request: Bytes,
    pub(crate) params: RawParams,
}

/// Why a receipt does not cover a decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotCovered {
    #[error("the receipt is for rank {receipt} of {pod}, the decode for {target}")]
    Rank { receipt: DpRank, pod: PodId, target: String },
    #[error("the receipt is for rank {receipt}, the sidecar was asked for rank {asked}")]
    AnotherRank { receipt: DpRank, asked: DpRank },
    #[error("the receipt is for KV of engine {receipt}, the prefill ran on {asked}")]
    Source { receipt: EngineId, asked: EngineId },
    #[error("the parameters beside the receipt do not name its virtual engine and request ({0})")]
    Params(&'static str),
}

impl NotCovered {
    /// The stable code.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Rank { .. } => "receipt_rank_mismatch",
            Self::AnotherRank { .. } | Self::Source { .. } | Self::Params(_) => "receipt_invalid",
        }
    }
}

/// Why a decode may go without a receipt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ungated {
    /// The operator chose `--gate direct`.
    Direct(Direct),
    /// A control shows what happens without the gate.
    Fault(SkippedGate),
}

/// Whose blocks the parameters beside a receipt name.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    remote_engine_id: Cow<'a, str>,
    #[serde(borrow)]
    remote_request_id: Cow<'a, str>,
}

/// The right to send one decode to one rank.
#[derive(Debug)]
pub(crate) struct DecodeTicket {
    target: Target,
    params: RawParams,
}

impl DecodeTicket {
    /// Redeems a receipt for a decode on `target`.
    pub(crate) fn from_receipt(receipt: &Receipt, target: Target) -> Result<Self, NotCovered> {
        let asked = &receipt.asked;
        if receipt.rank != asked.rank {
            return Err(NotCovered::AnotherRank { receipt: receipt.rank, asked: asked.rank });
        }
        if receipt.rank != target.rank || asked.pod != target.pod.id {
            let target = target.id().to_string();
            return Err(NotCovered::Rank { receipt: receipt.rank, pod: asked.pod, target });
        }
        if receipt.source_engine != asked.source_engine {
            let asked = asked.source_engine.clone();
            return Err(NotCovered::Source { receipt: receipt.source_engine.clone(), asked });
        }
        let named: Option<Named<'_>> = serde_json::from_str(receipt.params.as_str()).ok();
        if named.as_ref().is_none_or(|named| named.remote_engine_id.as_bytes() != receipt.virtual_engine) {
            return Err(NotCovered::Params("remote_engine_id"));
        }
        if named.is_none_or(|named| named.remote_request_id.as_bytes() != receipt.request) {
            return Err(NotCovered::Params("remote_request_id"));
        }
        Ok(Self { target, params: receipt.params.clone() })
    }

    /// A decode with P's own parameters, which no receipt covers.
    pub(crate) fn without_receipt(_why: Ungated, target: Target, params: RawParams) -> Self {
        Self { target, params }
    }

    /// Where it is valid.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Gives up the ticket for what the decode request carries.
    pub(crate) fn into_params(self) -> RawParams {
        self.params
    }
}

#[cfg(test)]
mod tests;

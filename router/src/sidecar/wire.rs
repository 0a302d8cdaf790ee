//! The JSON of the sidecars' API, as far as the router reads it.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::SidecarError;
use crate::ladder::Retry;

#[derive(Deserialize)]
pub(crate) struct LandedJson<'a> {
    #[serde(borrow)]
    pub(crate) transfer_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) receipt: ReceiptJson<'a>,
    #[serde(borrow)]
    pub(crate) kv_transfer_params: &'a RawValue,
}

#[derive(Deserialize)]
pub(crate) struct ReceiptJson<'a> {
    pub(crate) dp_rank: u16,
    #[serde(borrow)]
    pub(crate) virtual_engine_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) source_engine_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) request_id: Cow<'a, str>,
    pub(crate) collect_by_ms: u64,
    #[serde(default)]
    pub(crate) stages_us: SpentJson,
}

/// What the sidecar did with its time until the KV had landed.
#[derive(Default, Deserialize)]
pub(crate) struct SpentJson {
    queued: Option<u64>,
    handshake: Option<u64>,
    post: Option<u64>,
    wire: Option<u64>,
    verify: Option<u64>,
}

impl SpentJson {
    pub(crate) fn all(&self) -> Duration {
        let stages = [self.queued, self.handshake, self.post, self.wire, self.verify];
        Duration::from_micros(stages.into_iter().flatten().fold(0, u64::saturating_add))
    }
}

#[derive(Deserialize)]
pub(crate) struct TransferJson {
    pub(crate) transfer_id: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    failure: Option<Value>,
    #[serde(default)]
    freed: Option<String>,
}

impl TransferJson {
    /// Whether its slots are still D's, or were until D had read them.
    pub(crate) fn was_held(&self) -> bool {
        self.state == "landed" || self.freed.as_deref() == Some("collected")
    }

    /// Whether the KV arrived: P has been told then.
    pub(crate) fn has_landed(&self) -> bool {
        self.failure.is_none() && matches!(self.state.as_str(), "landed" | "done")
    }
}

/// A transfer's times, and what became of it.
#[derive(Deserialize)]
pub(crate) struct StagesJson {
    #[serde(default)]
    transfer_id: String,
    #[serde(default)]
    attempt_id: String,
    state: String,
    #[serde(default)]
    blocks: u64,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    stages_us: serde_json::Map<String, Value>,
    #[serde(default)]
    collected_by: Option<u16>,
    #[serde(default)]
    failure: Option<FailureJson>,
}

#[derive(Deserialize)]
struct FailureJson {
    code: String,
    #[serde(default)]
    detail: String,
}

#[derive(Deserialize)]
pub(crate) struct TransfersJson {
    pub(crate) transfers: Vec<StagesJson>,
}

/// The sidecar's stages, in the order in which they follow each other.
const STAGES: [&str; 7] = ["queued", "handshake", "post", "wire", "verify", "landed_idle", "collect"];

/// What a sidecar says of one transfer.
#[derive(Clone, Debug)]
pub(crate) struct TransferStages {
    transfer: String,
    state: String,
    blocks: u64,
    bytes: u64,
    /// Those that it has got to.
    pub(crate) stages: Vec<(&'static str, Duration)>,
    collected_by: Option<u16>,
    failure: Option<(String, String)>,
}

impl StagesJson {
    pub(crate) fn is_of(&self, attempt: &str) -> bool {
        self.attempt_id == attempt
    }

    pub(crate) fn read(self) -> TransferStages {
        let took =
            |name: &'static str| Some((name, Duration::from_micros(self.stages_us.get(name).and_then(Value::as_u64)?)));
        TransferStages {
            stages: STAGES.into_iter().filter_map(took).collect(),
            transfer: self.transfer_id,
            state: self.state,
            blocks: self.blocks,
            bytes: self.bytes,
            collected_by: self.collected_by,
            failure: self.failure.map(|failure| (failure.code, failure.detail)),
        }
    }
}

impl TransferStages {
    /// As JSON; the words of a failure may hold addresses.
    pub(crate) fn shown(&self, with_addresses: bool) -> Value {
        let stages: serde_json::Map<String, Value> = self
            .stages
            .iter()
            .map(|(name, took)| ((*name).to_owned(), Value::from(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))))
            .collect();
        let failure = self.failure.as_ref().map(|(code, detail)| {
            let detail = with_addresses.then_some(detail);
            json!({ "code": code, "detail": detail })
        });
        json!({
            "transfer_id": self.transfer, "state": self.state, "blocks": self.blocks, "bytes": self.bytes,
            "stages_us": stages, "collected_by": self.collected_by, "failure": failure,
        })
    }
}

#[derive(Deserialize)]
pub(crate) struct ProblemJson {
    code: String,
    #[serde(default)]
    retry: Option<String>,
    #[serde(default)]
    detail: Option<String>,
}

impl ProblemJson {
    pub(crate) fn into_error(self, status: StatusCode) -> SidecarError {
        let well_formed = !self.code.is_empty()
            && self.code.len() <= 40
            && self.code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let retry = match self.retry.as_deref() {
            Some("never") => Retry::Never,
            Some("same_target") => Retry::SameTarget,
            Some("other_target") => Retry::OtherTarget,
            Some("new_prefill") => Retry::NewPrefill,
            // A newer sidecar's word, or none: the step that is safe after any refusal.
            Some(_) | None if status.is_server_error() => Retry::NewPrefill,
            Some(_) | None => Retry::Never,
        };
        SidecarError::Problem {
            code: if well_formed { self.code } else { "sidecar_error".to_owned() },
            status,
            retry,
            detail: crate::error::cut_short(self.detail.unwrap_or_default()),
        }
    }
}

/// One rank, from `/v1/ranks/events` or `/v1/ranks`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RankJson {
    pub(crate) dp_rank: u16,
    pub(crate) local_rank: u16,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) reasons: Vec<String>,
    #[serde(default)]
    pub(crate) load: LoadJson,
    #[serde(default)]
    pub(crate) staging: StagingJson,
    #[serde(default)]
    pub(crate) draining: bool,
}

/// All ranks, from `/v1/ranks`.
#[derive(Deserialize)]
pub(crate) struct RanksJson {
    pub(crate) ranks: Vec<RankJson>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LoadJson {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    kv_usage: f64,
}

impl LoadJson {
    /// KV-cache usage in per mille.
    pub(crate) fn kv_usage(&self) -> u16 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped; NaN becomes 0")]
        let per_mille = (self.kv_usage.clamp(0.0, 1.0) * 1000.0) as u16;
        per_mille
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StagingJson {
    capacity_blocks: u64,
    used_blocks: u64,
    quarantined_blocks: u64,
}

impl StagingJson {
    /// Blocks that one request can have at most: all but those in quarantine.
    pub(crate) fn blocks(&self) -> u64 {
        self.capacity_blocks.saturating_sub(self.quarantined_blocks)
    }

    /// Blocks that cannot be given out now, in per mille; 0 where there is no staging, as on prefill pods.
    pub(crate) fn used(&self) -> u16 {
        let used = self.used_blocks.saturating_add(self.quarantined_blocks).min(self.capacity_blocks);
        let per_mille = used.saturating_mul(1000).checked_div(self.capacity_blocks).unwrap_or(0);
        u16::try_from(per_mille).unwrap_or(u16::MAX)
    }
}

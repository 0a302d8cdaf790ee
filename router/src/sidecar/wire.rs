//! The JSON of the sidecars' API, as far as the router reads it.

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::SidecarError;
use crate::ladder::Retry;

#[derive(Deserialize)]
pub(crate) struct LandedJson {
    pub(crate) transfer_id: String,
    pub(crate) receipt: ReceiptJson,
    pub(crate) kv_transfer_params: Value,
}

#[derive(Deserialize)]
pub(crate) struct ReceiptJson {
    pub(crate) dp_rank: u16,
    pub(crate) virtual_engine_id: String,
    pub(crate) source_engine_id: String,
    pub(crate) request_id: String,
    pub(crate) collect_by_ms: u64,
}

#[derive(Deserialize)]
pub(crate) struct TransferJson {
    pub(crate) transfer_id: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    failure: Option<Value>,
}

impl TransferJson {
    /// Whether the KV arrived: P has been told then.
    pub(crate) fn has_landed(&self) -> bool {
        self.failure.is_none() && matches!(self.state.as_str(), "landed" | "done")
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
            detail: self.detail.unwrap_or_default(),
        }
    }
}

/// One rank, from `/v1/ranks/events`.
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
    pub(crate) draining: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LoadJson {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
}

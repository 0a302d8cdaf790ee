//! Labels and their words.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::headers::Path;
use crate::ladder::Next;
use crate::trail::Leg;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// The whole answer went out.
    Ok,
    /// The client's mistake, by our check or the engine's.
    ClientError,
    /// Turned away: queue full or draining.
    Rejected,
    /// No rank was ready.
    NotReady,
    /// The last attempt failed.
    Failed,
    /// The client left.
    ClientGone,
    /// The answer broke off after its first byte.
    Broken,
    /// The drain timeout ended it.
    Cut,
}

impl Outcome {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Ok,
        Self::ClientError,
        Self::Rejected,
        Self::NotReady,
        Self::Failed,
        Self::ClientGone,
        Self::Broken,
        Self::Cut,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::Rejected => "rejected",
            Self::NotReady => "not_ready",
            Self::Failed => "failed",
            Self::ClientGone => "client_gone",
            Self::Broken => "broken",
            Self::Cut => "cut",
        }
    }
}

macro_rules! label_by_word {
    ($($name:ident),*) => {$(
        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    )*};
}
label_by_word!(Outcome, Path, Next, Leg);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EndedLabels {
    pub(super) outcome: Outcome,
    pub(super) path: Path,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PathLabels {
    pub(super) path: Path,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LegLabels {
    pub(super) leg: Leg,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FaultLabels {
    pub(super) leg: Leg,
    pub(super) fault: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StepLabels {
    pub(super) step: Next,
}

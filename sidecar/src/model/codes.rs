//! The stable codes of failures, and what a caller may do about each.

/// What a caller may do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same would happen again.
    Never,
    /// The same again may work.
    SameTarget,
    /// Another decode rank may work; the prefill is still good.
    OtherTarget,
    /// Only a new prefill helps.
    NewPrefill,
}

impl Retry {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Never, Self::SameTarget, Self::OtherTarget, Self::NewPrefill];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::SameTarget => "same_target",
            Self::OtherTarget => "other_target",
            Self::NewPrefill => "new_prefill",
        }
    }
}

/// The stable codes of problem documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// A field of the request is wrong.
    ParamsInvalid,
    /// The request is too big.
    TooLarge,
    /// No or a wrong token.
    Unauthorized,
    /// No such thing.
    NotFound,
    /// The attempt's key belongs to something else.
    AttemptConflict,
    /// Given up on request.
    Cancelled,
    /// This pod does not own the rank.
    RankUnknown,
    /// More blocks than the arena has.
    RequestExceedsStaging,
    /// The rank takes no work now.
    RankNotReady,
    /// The sidecar takes no work any more.
    ShuttingDown,
    /// No staging in time.
    StagingFull,
    /// The request names a peer that this sidecar must not connect to.
    PeerNotAllowed,
    /// P does not answer.
    PeerUnreachable,
    /// P is another engine than the one that prefilled.
    PeerChanged,
    /// P's lease was over.
    LeaseExpired,
    /// What landed is not what was sent.
    DigestMismatch,
    /// The read failed.
    TransferFailed,
    /// Not done in time.
    Deadline,
    /// P's blocks mean something else than D's.
    LayoutMismatch,
    /// An engine's version is not one we know.
    VersionUnsupported,
}

impl Code {
    /// All codes.
    pub const ALL: [Self; 20] = [
        Self::ParamsInvalid,
        Self::TooLarge,
        Self::Unauthorized,
        Self::NotFound,
        Self::AttemptConflict,
        Self::Cancelled,
        Self::RankUnknown,
        Self::RequestExceedsStaging,
        Self::RankNotReady,
        Self::ShuttingDown,
        Self::StagingFull,
        Self::PeerNotAllowed,
        Self::PeerUnreachable,
        Self::PeerChanged,
        Self::LeaseExpired,
        Self::DigestMismatch,
        Self::TransferFailed,
        Self::Deadline,
        Self::LayoutMismatch,
        Self::VersionUnsupported,
    ];

    /// Position in [`Code::ALL`].
    pub(crate) fn index(self) -> usize {
        Self::ALL.iter().position(|code| *code == self).unwrap_or(0)
    }

    fn facts(self) -> (&'static str, u16, Retry) {
        match self {
            Self::ParamsInvalid => ("params_invalid", 400, Retry::Never),
            Self::TooLarge => ("too_large", 413, Retry::Never),
            Self::Unauthorized => ("unauthorized", 401, Retry::Never),
            Self::NotFound => ("not_found", 404, Retry::Never),
            Self::AttemptConflict => ("attempt_conflict", 409, Retry::Never),
            Self::Cancelled => ("cancelled", 409, Retry::Never),
            Self::RankUnknown => ("rank_unknown", 404, Retry::OtherTarget),
            Self::RequestExceedsStaging => ("request_exceeds_staging", 413, Retry::OtherTarget),
            Self::RankNotReady => ("rank_not_ready", 503, Retry::OtherTarget),
            Self::ShuttingDown => ("shutting_down", 503, Retry::OtherTarget),
            Self::StagingFull => ("staging_full", 429, Retry::OtherTarget),
            Self::PeerNotAllowed => ("peer_not_allowed", 403, Retry::NewPrefill),
            Self::PeerUnreachable => ("peer_unreachable", 502, Retry::NewPrefill),
            Self::PeerChanged => ("peer_changed", 502, Retry::NewPrefill),
            Self::LeaseExpired => ("lease_expired", 409, Retry::NewPrefill),
            Self::DigestMismatch => ("digest_mismatch", 409, Retry::NewPrefill),
            Self::TransferFailed => ("transfer_failed", 502, Retry::SameTarget),
            Self::Deadline => ("deadline", 504, Retry::OtherTarget),
            Self::LayoutMismatch => ("layout_mismatch", 422, Retry::OtherTarget),
            Self::VersionUnsupported => ("version_unsupported", 422, Retry::OtherTarget),
        }
    }

    /// The word in the problem document.
    pub fn as_str(self) -> &'static str {
        self.facts().0
    }

    /// The HTTP status.
    pub fn status(self) -> u16 {
        self.facts().1
    }

    /// What the caller may do.
    pub fn retry(self) -> Retry {
        self.facts().2
    }
}

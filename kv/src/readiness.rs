//! Whether a DP rank can be given work, and why not, derived afresh from what is known.
//!
//! `Unknown → Handshaking → Ready ⇄ Degraded → Gone`. The state is a function of the facts, so it cannot disagree with them.

use std::fmt;

/// What a watcher knows about one rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether the engine's HTTP health check succeeded; `None` before the first answer.
    pub healthy: Option<bool>,
    /// Consecutive health checks that failed.
    pub failures: u32,
    /// What the engine's version said.
    pub version: VersionFact,
    /// What its side channel said.
    pub metadata: MetadataFact,
    /// Whether this pod can stage for it (decode) or reach its workers (prefill); the words say what is missing.
    pub blocked_by: Option<String>,
    /// Whether the process is going away and takes no new work.
    pub draining: bool,
}

/// The engine's version, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VersionFact {
    /// Not asked yet, or not answered.
    #[default]
    Unknown,
    /// One that we speak.
    Supported,
    /// One that we do not speak; the words name it and the supported range.
    Unsupported(String),
}

/// The engine's side-channel metadata, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MetadataFact {
    /// Not asked yet.
    #[default]
    Unknown,
    /// Here and usable.
    Known,
    /// The last try failed; the words say how.
    Failed(String),
    /// Here, but of a kind that cannot be served; the words say why.
    Unusable(String),
}

/// A rank's state, in design.md's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankState {
    /// Nothing is known yet.
    Unknown,
    /// The engine lives; what is needed to move KV is still being learnt.
    Handshaking,
    /// New work may be sent.
    Ready,
    /// It lives and is known, but new work would fail or should not be sent.
    Degraded,
    /// It does not answer.
    Gone,
}

/// Health checks in a row that must fail before a known rank counts as gone.
pub const GONE_AFTER: u32 = 3;

impl fmt::Display for RankState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl RankState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Unknown, Self::Handshaking, Self::Ready, Self::Degraded, Self::Gone];

    /// The word used in the API, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Handshaking => "handshaking",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Gone => "gone",
        }
    }
}

impl Facts {
    /// The state, and the reasons for anything but `Ready`, in words.
    pub fn assess(&self) -> (RankState, Vec<String>) {
        let mut reasons = Vec::new();
        match &self.version {
            VersionFact::Unsupported(words) => reasons.push(words.clone()),
            VersionFact::Unknown | VersionFact::Supported => {}
        }
        match &self.metadata {
            MetadataFact::Failed(words) | MetadataFact::Unusable(words) => reasons.push(words.clone()),
            MetadataFact::Unknown | MetadataFact::Known => {}
        }
        reasons.extend(self.blocked_by.clone());
        if self.draining {
            reasons.push("the sidecar is draining".to_owned());
        }
        match self.healthy {
            None => return (RankState::Unknown, vec!["the engine has not answered its first health check".to_owned()]),
            Some(false) if self.failures >= GONE_AFTER => {
                reasons.insert(0, format!("the engine failed {} health checks in a row", self.failures));
                return (RankState::Gone, reasons);
            }
            Some(false) => reasons.insert(0, "the engine's last health check failed".to_owned()),
            Some(true) => {}
        }
        let known = self.version == VersionFact::Supported && self.metadata == MetadataFact::Known;
        let refused =
            matches!(self.version, VersionFact::Unsupported(_)) || matches!(self.metadata, MetadataFact::Unusable(_));
        match (reasons.is_empty(), known, refused) {
            (true, true, _) => (RankState::Ready, reasons),
            (_, _, true) | (false, true, _) => (RankState::Degraded, reasons),
            (_, false, false) => {
                if reasons.is_empty() {
                    reasons.push("the engine's version and side channel are being asked".to_owned());
                }
                (RankState::Handshaking, reasons)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Facts {
        Facts {
            healthy: Some(true),
            version: VersionFact::Supported,
            metadata: MetadataFact::Known,
            ..Facts::default()
        }
    }

    #[test]
    fn a_rank_becomes_ready_step_by_step() {
        let mut facts = Facts::default();
        assert_eq!(facts.assess().0, RankState::Unknown);
        facts.healthy = Some(true);
        assert_eq!(facts.assess().0, RankState::Handshaking);
        facts.version = VersionFact::Supported;
        facts.metadata = MetadataFact::Failed("no answer from its side channel".to_owned());
        assert_eq!(facts.assess(), (RankState::Handshaking, vec!["no answer from its side channel".to_owned()]));
        facts.metadata = MetadataFact::Known;
        assert_eq!(facts.assess(), (RankState::Ready, vec![]));
    }

    #[test]
    fn states_are_called_as_in_the_api() {
        let words = RankState::ALL.map(RankState::as_str);
        assert_eq!(words, ["unknown", "handshaking", "ready", "degraded", "gone"]);
        assert_eq!(RankState::ALL.map(|state| state.to_string()), words);
    }

    #[test]
    fn everything_but_ready_has_a_reason() {
        let check = |change: fn(&mut Facts), state, reason: &str| {
            let mut facts = ready();
            change(&mut facts);
            let (got, reasons) = facts.assess();
            assert_eq!(got, state);
            assert!(reasons.iter().any(|words| words.contains(reason)), "{reasons:?}");
        };
        check(|f| f.healthy = Some(false), RankState::Degraded, "last health check failed");
        check(|f| (f.healthy, f.failures) = (Some(false), 3), RankState::Gone, "failed 3 health checks in a row");
        check(|f| f.draining = true, RankState::Degraded, "draining");
        check(|f| f.blocked_by = Some("staging: no memory".to_owned()), RankState::Degraded, "no memory");
        check(
            |f| f.version = VersionFact::Unsupported("version 0.1 is not in 0.32.0".to_owned()),
            RankState::Degraded,
            "0.1",
        );
        check(|f| f.metadata = MetadataFact::Unusable("Mamba".to_owned()), RankState::Degraded, "Mamba");
    }
}

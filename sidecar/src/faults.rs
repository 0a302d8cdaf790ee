//! Faults that can be switched on at start, for controls and tests: each shows that a check elsewhere really checks.

use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use tracing::warn;

use crate::model::{Faults, SlowWire, Spoil};

/// One value of the hidden `--fault` flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Landed bytes are changed before the receipt is given: the decode's text must come out wrong.
    CorruptStaging,
    /// Landed bytes are zeroed before the receipt is given, as if the pull had moved nothing.
    ZeroStaging,
    /// Every pull waits this long before it starts.
    HoldPull(Duration),
    /// The producer's lease is not kept alive.
    NoHeartbeat,
    /// The bytes of one prefill rank, known by its side channel's port, start to move late: its wire stage is slow.
    SlowWire(SlowWire),
}

/// Why a `--fault` value is refused.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FaultError {
    /// No such fault.
    #[error("`{0}` is no fault: corrupt-staging, zero-staging, hold-pull=MS, no-heartbeat or slow-wire=MS@PORT")]
    Unknown(String),
    /// The fault is a number of milliseconds and this is none.
    #[error("`{0}` needs a number of milliseconds, as in hold-pull=500")]
    NotMilliseconds(String),
    /// The fault is a number of milliseconds and a port and this is none.
    #[error("`{0}` needs milliseconds and the port of a prefill rank's side channel, as in slow-wire=80@5600")]
    NotAtPort(String),
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("corrupt-staging", None) => Ok(Self::CorruptStaging),
            ("zero-staging", None) => Ok(Self::ZeroStaging),
            ("no-heartbeat", None) => Ok(Self::NoHeartbeat),
            ("hold-pull", value) => value
                .and_then(|value| value.parse().ok())
                .map(|ms| Self::HoldPull(Duration::from_millis(ms)))
                .ok_or_else(|| FaultError::NotMilliseconds(text.to_owned())),
            ("slow-wire", value) => value
                .and_then(|value| value.split_once('@'))
                .and_then(|(ms, port)| Some((ms.parse().ok()?, port.parse().ok()?)))
                .map(|(ms, port)| Self::SlowWire(SlowWire { port, delay: Duration::from_millis(ms) }))
                .ok_or_else(|| FaultError::NotAtPort(text.to_owned())),
            _ => Err(FaultError::Unknown(text.to_owned())),
        }
    }
}

/// Folds the flags into what the pod is told; of two values of one fault the last one counts.
pub fn fold(faults: &[Fault]) -> Faults {
    let mut folded = Faults::default();
    for fault in faults {
        match fault {
            Fault::CorruptStaging => folded.spoil = Some(Spoil::Flip),
            Fault::ZeroStaging => folded.spoil = Some(Spoil::Zero),
            Fault::HoldPull(hold) => folded.hold_pull = Some(*hold),
            Fault::NoHeartbeat => folded.no_heartbeat = true,
            Fault::SlowWire(slow) => folded.slow_wire = Some(*slow),
        }
    }
    folded
}

/// Says once, at start, that this process is meant to go wrong.
pub fn announce(faults: &[Fault]) {
    for fault in faults {
        warn!(?fault, "fault injection is on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_by_name_and_folded() {
        let faults: Vec<Fault> = ["corrupt-staging", "hold-pull=250", "no-heartbeat", "slow-wire=80@5601"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let folded = fold(&faults);
        assert!(folded.no_heartbeat);
        assert_eq!(folded.slow_wire, Some(SlowWire { port: 5601, delay: Duration::from_millis(80) }));
        assert_eq!(folded.spoil, Some(Spoil::Flip));
        assert_eq!(fold(&["zero-staging".parse().unwrap()]).spoil, Some(Spoil::Zero));
        assert_eq!(folded.hold_pull, Some(Duration::from_millis(250)));
    }

    #[test]
    fn a_fault_that_does_not_exist_is_refused_with_the_list() {
        assert_eq!("hold-pull".parse::<Fault>(), Err(FaultError::NotMilliseconds("hold-pull".into())));
        assert_eq!("hold-pull=soon".parse::<Fault>(), Err(FaultError::NotMilliseconds("hold-pull=soon".into())));
        assert_eq!("slow-wire=80".parse::<Fault>(), Err(FaultError::NotAtPort("slow-wire=80".into())));
        let unknown = "corrupt".parse::<Fault>().unwrap_err().to_string();
        assert!(unknown.contains("corrupt-staging") && unknown.contains("no-heartbeat"), "{unknown}");
    }
}

//! Faults that controls and tests switch on: each shows that a check would have noticed.

use std::str::FromStr;
use std::time::Duration;

/// One injected fault, as `--fault NAME[=MS]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Decode goes out with P's own parameters while the receipt is still being waited for.
    SkipGate,
    /// Decode is aimed at the rank after the one that the receipt is for.
    WrongRank,
    /// Decode waits this long after the receipt.
    DelayDecode(Duration),
}

/// Why a fault's name is not understood.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no fault: skip-gate, wrong-rank or delay-decode=MS")]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        let unknown = || UnknownFault(text.to_owned());
        match text.split_once('=') {
            None if text == "skip-gate" => Ok(Self::SkipGate),
            None if text == "wrong-rank" => Ok(Self::WrongRank),
            Some(("delay-decode", ms)) => {
                ms.parse().map(|ms| Self::DelayDecode(Duration::from_millis(ms))).map_err(|_| unknown())
            }
            None | Some(_) => Err(unknown()),
        }
    }
}

/// Proof that the skip-gate fault is on: the only way past the gate besides a receipt and the direct mode.
#[derive(Clone, Copy, Debug)]
pub struct SkippedGate(());

/// All injected faults of one router; none by default.
#[derive(Clone, Debug, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// The faults of the command line.
    pub fn new(faults: &[Fault]) -> Self {
        Self(faults.to_vec())
    }

    /// Whether any is on.
    pub fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// The proof, when [`Fault::SkipGate`] is on.
    pub fn skip_gate(&self) -> Option<SkippedGate> {
        self.0.contains(&Fault::SkipGate).then_some(SkippedGate(()))
    }

    /// Whether [`Fault::WrongRank`] is on.
    pub fn wrong_rank(&self) -> bool {
        self.0.contains(&Fault::WrongRank)
    }

    /// The wait of [`Fault::DelayDecode`].
    pub fn delay_decode(&self) -> Option<Duration> {
        self.0.iter().find_map(|fault| match fault {
            Fault::DelayDecode(wait) => Some(*wait),
            Fault::SkipGate | Fault::WrongRank => None,
        })
    }
}

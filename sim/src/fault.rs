//! A fault that can be switched on at start: it shows that what should notice it does.

use std::str::FromStr;
use std::time::Duration;

use kv::ids::DpRank;

/// One value of the hidden `--fault` flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A prefill's blocks are overwritten some time after it was answered, whatever the lease says.
    OverwritePinned {
        /// How long after.
        after: Duration,
        /// On one rank (in the deployment's numbering) only.
        rank: Option<DpRank>,
    },
}

/// Not a fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no fault: overwrite-pinned=MS or overwrite-pinned=MS@RANK")]
pub struct FaultError(String);

impl Fault {
    /// When this rank overwrites what it has promised to keep.
    pub fn overwrites(self, own: DpRank) -> Option<Duration> {
        let Self::OverwritePinned { after, rank } = self;
        rank.is_none_or(|rank| rank == own).then_some(after)
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let refused = || FaultError(text.to_owned());
        let value = text.strip_prefix("overwrite-pinned=").ok_or_else(refused)?;
        let (ms, rank) = value.split_once('@').map_or((value, None), |(ms, rank)| (ms, Some(rank)));
        let after = Duration::from_millis(ms.parse().map_err(|_| refused())?);
        let rank = rank.map(|rank| rank.parse().map(DpRank)).transpose().map_err(|_| refused())?;
        Ok(Self::OverwritePinned { after, rank })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_a_time_and_perhaps_a_rank() {
        let fault: Fault = "overwrite-pinned=200@1".parse().unwrap();
        assert_eq!(fault.overwrites(DpRank(1)), Some(Duration::from_millis(200)));
        assert_eq!(fault.overwrites(DpRank(0)), None);
        let fault: Fault = "overwrite-pinned=200".parse().unwrap();
        assert!(fault.overwrites(DpRank(0)).is_some());
        for wrong in
            ["", "overwrite-pinned", "overwrite-pinned=", "overwrite-pinned=1@", "overwrite-pinned=x@1", "other=1"]
        {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}

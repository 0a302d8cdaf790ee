//! A set of tensor-parallel shards.

use crate::ids::TpRank;

/// The most TP shards that one DP rank may have.
pub const MAX_SHARDS: u16 = 64;

/// Shards of one DP rank, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSet(u64);

impl ShardSet {
    /// No shard.
    pub const EMPTY: Self = Self(0);

    /// Shards `0..size`; sizes above [`MAX_SHARDS`] count as that.
    pub fn all(size: u16) -> Self {
        let size = u32::from(size.min(MAX_SHARDS));
        Self(u64::MAX.checked_shr(64 - size).unwrap_or(0))
    }

    /// Takes a shard out; false when it was not in.
    pub fn take(&mut self, shard: TpRank) -> bool {
        let bit = bit(shard);
        let was = self.0 & bit != 0;
        self.0 &= !bit;
        was
    }

    /// Whether the shard is in.
    pub fn contains(self, shard: TpRank) -> bool {
        self.0 & bit(shard) != 0
    }

    /// Whether no shard is in.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many are in.
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }
}

fn bit(shard: TpRank) -> u64 {
    1u64.checked_shl(u32::from(shard.0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_leaves_the_set_once() {
        let mut set = ShardSet::all(3);
        assert_eq!(set.len(), 3);
        assert!(set.take(TpRank(1)));
        assert!(!set.take(TpRank(1)), "the second time it is gone");
        assert!(!set.take(TpRank(3)), "it was never in");
        assert!(!set.take(TpRank(400)));
        assert!(set.contains(TpRank(2)) && !set.contains(TpRank(1)));
        assert!(set.take(TpRank(0)) && set.take(TpRank(2)) && set.is_empty());
    }

    #[test]
    fn sizes_from_none_to_the_limit() {
        assert!(ShardSet::all(0).is_empty());
        assert_eq!(ShardSet::all(64).len(), 64);
        assert_eq!(ShardSet::all(999).len(), 64);
    }
}

//! Which blocks of an engine hold one request's KV, in prompt order.

use crate::ids::BlockId;

/// The blocks of one request in one KV-cache group: ordered, non-empty, without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockList(Vec<BlockId>);

/// Why a list of ids is not a [`BlockList`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockListError {
    /// No block at all.
    #[error("a block list is empty")]
    Empty,
    /// The same block twice: two prompt positions cannot share one page.
    #[error("block {0} is listed twice")]
    Duplicate(BlockId),
}

impl BlockList {
    /// Checks the ids and keeps their order.
    ///
    /// # Errors
    /// [`BlockListError`] for an empty list or one that names a block twice.
    pub fn new(ids: Vec<BlockId>) -> Result<Self, BlockListError> {
        if ids.is_empty() {
            return Err(BlockListError::Empty);
        }
        if ids.is_sorted_by(|one, next| one < next) {
            return Ok(Self(ids));
        }
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        match sorted.iter().zip(sorted.iter().skip(1)).find(|(one, next)| one == next) {
            Some((double, _)) => Err(BlockListError::Duplicate(*double)),
            None => Ok(Self(ids)),
        }
    }

    /// The ids in prompt order.
    pub fn ids(&self) -> &[BlockId] {
        &self.0
    }

    /// How many blocks; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a block list is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// One [`BlockList`] per KV-cache group, as `remote_block_ids` carries them: at least one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupedBlocks(Vec<BlockList>);

/// Why block lists of several groups are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupedBlocksError {
    /// No group at all.
    #[error("there is no block group")]
    NoGroup,
    /// One group's list is bad.
    #[error("block group {group} is not a block list")]
    Group {
        /// Index of the group.
        group: usize,
        /// What is wrong with it.
        #[source]
        source: BlockListError,
    },
}

impl GroupedBlocks {
    /// Checks each group.
    ///
    /// # Errors
    /// [`GroupedBlocksError`] for no group, or the first group that is not a [`BlockList`].
    pub fn new(groups: Vec<Vec<BlockId>>) -> Result<Self, GroupedBlocksError> {
        if groups.is_empty() {
            return Err(GroupedBlocksError::NoGroup);
        }
        // Collected in place: a list of ids is as large as a list of them that has been checked.
        let checked = groups
            .into_iter()
            .enumerate()
            .map(|(group, ids)| BlockList::new(ids).map_err(|source| GroupedBlocksError::Group { group, source }));
        Ok(Self(checked.collect::<Result<_, _>>()?))
    }

    /// The groups in wire order.
    pub fn groups(&self) -> &[BlockList] {
        &self.0
    }

    /// Blocks over all groups.
    pub fn total(&self) -> usize {
        self.0.iter().map(BlockList::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u32]) -> Vec<BlockId> {
        ids.iter().copied().map(BlockId).collect()
    }

    #[test]
    fn a_list_keeps_its_order_and_refuses_nothing_and_doubles() {
        assert_eq!(BlockList::new(ids(&[3, 1, 2])).unwrap().ids(), ids(&[3, 1, 2]));
        assert_eq!(BlockList::new(vec![]), Err(BlockListError::Empty));
        assert_eq!(BlockList::new(ids(&[3, 1, 3])), Err(BlockListError::Duplicate(BlockId(3))));
    }

    #[test]
    fn groups_name_the_one_that_is_wrong() {
        let error = GroupedBlocks::new(vec![ids(&[1]), ids(&[])]).unwrap_err();
        assert_eq!(error, GroupedBlocksError::Group { group: 1, source: BlockListError::Empty });
        assert_eq!(GroupedBlocks::new(vec![]), Err(GroupedBlocksError::NoGroup));
        assert_eq!(GroupedBlocks::new(vec![ids(&[1]), ids(&[1, 2])]).unwrap().total(), 3);
    }
}

//! Range-checked descriptor lists of both sides of a read.

use std::ops::Range;

use crate::{
    error::DescError,
    region::{Owner, Region},
};

/// What kind of memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemKind {
    /// Host memory.
    Dram,
    /// GPU memory.
    Vram,
}

/// The memory that a peer said may be read: the only source of remote descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMemory {
    /// Its kind.
    pub kind: MemKind,
    /// NIXL's device id: 0 for host memory, else the GPU's index.
    pub device: u64,
    /// Address ranges in the peer's process, half open.
    pub ranges: Vec<Range<u64>>,
}

/// Parts of one region that a read writes into, in order. Keeps the region alive and registered.
#[derive(Clone, Debug)]
pub struct LocalDescs {
    region: Region,
    entries: Vec<(u64, u64)>,
    bytes: u64,
}

/// Parts of a peer's memory that a read reads from, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteDescs {
    kind: MemKind,
    device: u64,
    entries: Vec<(u64, u64)>,
}

impl LocalDescs {
    /// Makes a list of `(offset, length)` in bytes.
    ///
    /// # Errors
    /// When the list is empty, or an entry is empty or leaves the region.
    pub fn new(region: &Region, entries: impl IntoIterator<Item = (u64, u64)>) -> Result<Self, DescError> {
        let entries: Vec<_> = entries.into_iter().collect();
        check_lengths(&entries)?;
        let mut bytes = 0_u64;
        for (index, &(offset, len)) in entries.iter().enumerate() {
            region.memory().check(offset, len).map_err(|source| DescError::Local { index, source })?;
            bytes = bytes.saturating_add(len);
        }
        Ok(Self { region: region.clone(), entries, bytes })
    }

    /// The region that they lie in.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// `(offset in the region, length)` of each, in bytes.
    #[must_use]
    pub fn entries(&self) -> &[(u64, u64)] {
        &self.entries
    }

    /// Bytes of all entries together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn owner(&self) -> Owner {
        self.region.owner()
    }

    /// The same parts of the same memory, as another agent has registered it.
    pub(crate) fn within(&self, region: &Region) -> Self {
        Self { region: region.clone(), entries: self.entries.clone(), bytes: self.bytes }
    }

    /// Cut into lists of `size` bytes each; the last one has what is left.
    pub(crate) fn pieces(&self, size: u64) -> Vec<Self> {
        let list = |entries: Entries| {
            let bytes = entries.iter().map(|entry| entry.1).sum();
            Self { region: self.region.clone(), entries, bytes }
        };
        pieces(&self.entries, size).into_iter().map(list).collect()
    }

    /// The first `count` entries, at least one.
    pub(crate) fn first(&self, count: usize) -> Self {
        let entries: Vec<_> = self.entries.iter().copied().take(count.max(1)).collect();
        let bytes = entries.iter().map(|entry| entry.1).sum();
        Self { region: self.region.clone(), entries, bytes }
    }
}

impl RemoteDescs {
    /// Makes a list of `(address, length)` in bytes.
    ///
    /// # Errors
    /// When the list is empty, or an entry is empty or not inside one range that the peer advertised.
    pub fn new(peer: &PeerMemory, entries: impl IntoIterator<Item = (u64, u64)>) -> Result<Self, DescError> {
        let entries: Vec<_> = entries.into_iter().collect();
        check_lengths(&entries)?;
        // Neighbours mostly lie in one range, so the last one that matched is asked first.
        let mut last: Option<&Range<u64>> = None;
        for (index, &(addr, len)) in entries.iter().enumerate() {
            let refused = DescError::Remote { index, addr, len };
            let end = addr.checked_add(len).ok_or(refused)?;
            let holds = |range: &&Range<u64>| range.start <= addr && end <= range.end;
            last = last.filter(holds).or_else(|| peer.ranges.iter().find(holds));
            if last.is_none() {
                return Err(refused);
            }
        }
        Ok(Self { kind: peer.kind, device: peer.device, entries })
    }

    /// What kind of memory they lie in.
    #[must_use]
    pub fn kind(&self) -> MemKind {
        self.kind
    }

    /// NIXL's device id.
    #[must_use]
    pub fn device(&self) -> u64 {
        self.device
    }

    /// `(address at the peer, length)` of each, in bytes.
    #[must_use]
    pub fn entries(&self) -> &[(u64, u64)] {
        &self.entries
    }

    /// Cut into lists of `size` bytes each; the last one has what is left.
    pub(crate) fn pieces(&self, size: u64) -> Vec<Self> {
        let list = |entries| Self { kind: self.kind, device: self.device, entries };
        pieces(&self.entries, size).into_iter().map(list).collect()
    }

    /// The first `count` entries, at least one.
    pub(crate) fn first(&self, count: usize) -> Self {
        let entries = self.entries.iter().copied().take(count.max(1)).collect();
        Self { kind: self.kind, device: self.device, entries }
    }
}

/// Where each begins, and its length.
type Entries = Vec<(u64, u64)>;

/// Cuts a list into lists of `size` bytes; an entry that a cut goes through has a part in each.
fn pieces(entries: &[(u64, u64)], size: u64) -> Vec<Entries> {
    let size = size.max(1);
    let (mut lists, mut list, mut room) = (Vec::new(), Vec::new(), size);
    for &(mut start, mut len) in entries {
        while len > 0 {
            let here = len.min(room);
            list.push((start, here));
            (start, len, room) = (start.saturating_add(here), len - here, room - here);
            if room == 0 {
                lists.push(std::mem::take(&mut list));
                room = size;
            }
        }
    }
    lists.extend((!list.is_empty()).then_some(list));
    lists
}

fn check_lengths(entries: &[(u64, u64)]) -> Result<(), DescError> {
    if entries.is_empty() {
        return Err(DescError::Empty);
    }
    match entries.iter().position(|entry| entry.1 == 0) {
        Some(index) => Err(DescError::ZeroLength { index }),
        None => Ok(()),
    }
}

/// Shows that two lists pair up, entry by entry, and that the local one belongs to `owner`.
pub(crate) fn check_pair(owner: Owner, local: &LocalDescs, remote: &RemoteDescs) -> Result<(), DescError> {
    if local.owner() != owner {
        return Err(DescError::ForeignRegion);
    }
    if local.entries.len() != remote.entries.len() {
        return Err(DescError::Count { local: local.entries.len(), remote: remote.entries.len() });
    }
    for (index, (here, there)) in local.entries.iter().zip(&remote.entries).enumerate() {
        if here.1 != there.1 {
            return Err(DescError::Length { index, local: here.1, remote: there.1 });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advertised(ranges: Vec<Range<u64>>) -> PeerMemory {
        PeerMemory { kind: MemKind::Dram, device: 0, ranges }
    }

    #[test]
    fn remote_entries_must_lie_inside_one_advertised_range() {
        let peer = advertised(vec![0x1000..0x2000, 0x2000..0x3000]);
        assert!(RemoteDescs::new(&peer, [(0x1000, 0x1000), (0x2fff, 1)]).is_ok());
        let across = RemoteDescs::new(&peer, [(0x1000, 1), (0x1800, 0x1000)]).expect_err("crosses a border");
        assert_eq!(across, DescError::Remote { index: 1, addr: 0x1800, len: 0x1000 });
        assert!(RemoteDescs::new(&peer, [(u64::MAX, 2)]).is_err());
        assert_eq!(RemoteDescs::new(&peer, []), Err(DescError::Empty));
        assert_eq!(RemoteDescs::new(&peer, [(0x1000, 0)]), Err(DescError::ZeroLength { index: 0 }));
    }

    #[test]
    fn a_list_is_cut_between_its_entries_or_through_one() {
        let list = [(100, 4), (200, 4), (300, 2)];
        assert_eq!(pieces(&list, 4), [vec![(100, 4)], vec![(200, 4)], vec![(300, 2)]]);
        assert_eq!(pieces(&list, 7), [vec![(100, 4), (200, 3)], vec![(203, 1), (300, 2)]]);
        assert_eq!(pieces(&list, 3)[1], [(103, 1), (200, 2)]);
        assert_eq!((pieces(&list, 10).len(), pieces(&list, 11).len()), (1, 1));
    }
}

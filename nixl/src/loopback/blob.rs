//! The metadata blob of a loopback agent: a mark, the name, then address ranges, all numbers little endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::name::AgentName;

const MARK: &[u8] = b"kvgate-loopback-1\0";

pub(super) fn encode(name: &AgentName, ranges: impl Iterator<Item = (u64, u64)>) -> Bytes {
    let mut blob = BytesMut::from(MARK);
    blob.put_u64_le(name.as_str().len() as u64);
    blob.put_slice(name.as_str().as_bytes());
    for (start, end) in ranges {
        blob.put_u64_le(start);
        blob.put_u64_le(end);
    }
    blob.freeze()
}

pub(super) fn decode(blob: &[u8]) -> Option<(AgentName, Vec<(u64, u64)>)> {
    let mut rest = blob.strip_prefix(MARK)?;
    let len = usize::try_from(rest.try_get_u64_le().ok()?).ok()?;
    let name = AgentName::new(str::from_utf8(rest.get(..len)?).ok()?).ok()?;
    rest.advance(len);
    let mut ranges = Vec::new();
    while !rest.is_empty() {
        ranges.push((rest.try_get_u64_le().ok()?, rest.try_get_u64_le().ok()?));
    }
    Some((name, ranges))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_survives_the_trip_and_a_cut_one_is_refused() {
        let name = AgentName::new("p-0").expect("a name");
        let blob = encode(&name, [(1, 2), (3, 4)].into_iter());
        assert_eq!(decode(&blob), Some((name, vec![(1, 2), (3, 4)])));
        let mut whole = 0;
        for len in 0..blob.len() {
            whole += usize::from(decode(&blob[..len]).is_some());
        }
        assert_eq!(whole, 2, "only cuts between ranges are blobs");
        assert_eq!(decode(b""), None);
    }
}

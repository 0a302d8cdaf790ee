//! Lists of lists of block ids, each list into memory that is asked for once.

use std::fmt;

use kv::ids::BlockId;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};

/// One list per group; `None` when the JSON is anything else.
pub(super) fn read(json: &str) -> Option<Vec<Vec<BlockId>>> {
    // In front of each entry but the first is a comma, so no list has more entries than this.
    let most = memchr::memchr_iter(b',', json.as_bytes()).count() + 1;
    let mut parser = serde_json::Deserializer::from_str(json);
    let groups = parser.deserialize_seq(Groups { most }).ok()?;
    parser.end().ok()?;
    Some(groups)
}

/// Reads groups, the longest of which has at most so many entries.
struct Groups {
    most: usize,
}

impl<'de> Visitor<'de> for Groups {
    type Value = Vec<Vec<BlockId>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of lists")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut groups = Vec::with_capacity(1);
        // Room is made for the first group only, which is the only one mostly: a list of many empty groups must not take much memory.
        let mut room = self.most;
        while let Some(group) = list.next_element_seed(Group { room })? {
            room = 0;
            groups.push(group);
        }
        Ok(groups)
    }
}

/// Reads one group.
struct Group {
    room: usize,
}

impl<'de> DeserializeSeed<'de> for Group {
    type Value = Vec<BlockId>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Group {
    type Value = Vec<BlockId>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of block ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut ids = Vec::with_capacity(self.room);
        while let Some(id) = list.next_element()? {
            ids.push(BlockId(id));
        }
        Ok(ids)
    }
}

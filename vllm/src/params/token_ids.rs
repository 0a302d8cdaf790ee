//! A prompt's token ids, passed on as they are written: thousands of numbers need not be numbers here.

use bytes::Bytes;

/// A JSON list of token ids. Clones share the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIds(Bytes);

impl TokenIds {
    /// Takes JSON that has been read as one value; `None` when that is no list of token ids.
    pub(crate) fn read(json: Bytes) -> Option<Self> {
        is_ids(&json).then_some(Self(json))
    }

    /// The JSON.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The ids.
    pub fn to_vec(&self) -> Vec<u32> {
        serde_json::from_slice(&self.0).unwrap_or_default()
    }
}

/// Whether all entries are whole numbers of 32 bits. That it is JSON is known: what has only digits, commas and spaces between its brackets
/// is a list of such numbers, and each of them is told by its length or its value.
fn is_ids(json: &[u8]) -> bool {
    let Some(list) = json.strip_prefix(b"[").and_then(|list| list.strip_suffix(b"]")) else { return false };
    let mut number = 0_u64;
    for byte in list {
        match byte {
            b'0'..=b'9' => number = number.saturating_mul(10).saturating_add(u64::from(byte - b'0')),
            b',' => number = 0,
            b' ' | b'\t' | b'\n' | b'\r' => {}
            _ => return false,
        }
        if number > u64::from(u32::MAX) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_token_ids_is_told_from_any_other_json() {
        for (json, ids) in [
            ("[]", Some(vec![])),
            ("[7]", Some(vec![7])),
            ("[0, 4294967295 ,\n12]", Some(vec![0, u32::MAX, 12])),
            ("[4294967296]", None),
            ("[99999999999999999999999999]", None),
            ("[-1]", None),
            ("[1.0]", None),
            ("[1e3]", None),
            ("[[1]]", None),
            ("[null]", None),
            ("[\"1\"]", None),
            ("{}", None),
            ("7", None),
        ] {
            assert_eq!(serde_json::from_str::<Vec<u32>>(json).ok(), ids, "{json}: what the parser says");
            assert_eq!(TokenIds::read(json.into()).map(|ids| ids.to_vec()), ids, "{json}");
        }
    }
}

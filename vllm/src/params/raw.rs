//! Parameters as they came, byte for byte: what is handed on is what was said, and nothing is written anew.

use bytes::Bytes;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::TOKEN_IDS;
use crate::body::edit::{Edit, apply, cut};
use crate::body::scan::scan;

/// JSON that stands for `kv_transfer_params`. Clones share the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawParams(Bytes);

impl RawParams {
    /// Bytes that have been read as one JSON value.
    pub(crate) fn read(json: Bytes) -> Self {
        Self(json)
    }

    /// The JSON.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Gives a decode engine the very tokens of the prefill (text-only chats; protocol doc §4.4). Does nothing to a non-object.
    pub fn with_token_ids(self, ids: &[u32]) -> Self {
        match serde_json::to_string(ids) {
            Ok(ids) => self.with(TOKEN_IDS, ids),
            Err(_) => self,
        }
    }

    /// The same with another number for a field. Does nothing to a non-object.
    pub fn with_number(self, field: &'static str, number: u64) -> Self {
        self.with(field, number.to_string())
    }

    fn with(self, field: &'static str, json: String) -> Self {
        let Ok(scanned) = scan(&self.0) else { return self };
        let pieces = cut(&self.0, &apply(&scanned.layout, &[(field, Edit::Set(json.into()))]));
        match <[Bytes; 1]>::try_from(pieces) {
            Ok([whole]) => Self(whole),
            Err(pieces) => Self(pieces.concat().into()),
        }
    }
}

impl From<Box<RawValue>> for RawParams {
    fn from(json: Box<RawValue>) -> Self {
        Self(String::from(Box::<str>::from(json)).into())
    }
}

impl Serialize for RawParams {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(self.as_str()).map_err(S::Error::custom)?.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> RawParams {
        RawParams::read(Bytes::copy_from_slice(json.as_bytes()))
    }

    #[test]
    fn one_field_is_changed_or_added_and_every_other_byte_stays() {
        let params = raw(r#"{"x": 1e400, "prompt_token_ids": null ,"y":{"a":[ ]}}"#);
        let with = params.with_token_ids(&[128_000, 9]);
        assert_eq!(with.as_str(), r#"{"x": 1e400, "prompt_token_ids": [128000,9] ,"y":{"a":[ ]}}"#);
        assert_eq!(raw("{}").with_number("n", 7).as_str(), r#"{"n":7}"#);
        assert_eq!(raw("null").with_number("n", 7).as_str(), "null");
    }

    #[test]
    fn they_stand_in_a_longer_text_as_they_came() {
        let text = serde_json::to_string(&[raw(r#"{"b":0.10,"a":1}"#)]).unwrap();
        assert_eq!(text, r#"[{"b":0.10,"a":1}]"#);
    }
}

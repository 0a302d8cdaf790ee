//! Parameters as they came, byte for byte: what is handed on is what was said, and nothing is written anew.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{TOKEN_IDS, TokenIds};
use crate::body::edit::{Edit, edited};
use crate::body::scan::scan;

/// JSON that stands for `kv_transfer_params`. Clones share the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawParams(Bytes);

impl RawParams {
    /// Bytes that have been read as one JSON value.
    pub(crate) fn read(json: Bytes) -> Self {
        Self(json)
    }

    /// A value in JSON that is kept: both share the bytes.
    ///
    /// # Panics
    /// When `part` was not read from `whole`.
    pub fn part_of(whole: &Bytes, part: &RawValue) -> Self {
        Self(whole.slice_ref(part.get().as_bytes()))
    }

    /// The JSON.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Gives a decode engine the very tokens of the prefill (text-only chats; protocol doc §4.4). Does nothing to a non-object.
    pub fn with_token_ids(self, ids: &TokenIds) -> Self {
        self.with(TOKEN_IDS, ids.as_str())
    }

    /// The same with another number for a field. Does nothing to a non-object.
    pub fn with_number(self, field: &'static str, number: u64) -> Self {
        self.with(field, &number.to_string())
    }

    fn with(self, field: &'static str, json: &str) -> Self {
        let Ok(scanned) = scan(&self.0) else { return self };
        Self(edited(&self.0, &scanned.layout, &[&[(field, Edit::Set(json.into()))]]).concat())
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
        let ids = TokenIds::read("[128000,9]".into()).unwrap();
        let with = params.with_token_ids(&ids);
        assert_eq!(with.as_str(), r#"{"x": 1e400, "prompt_token_ids": [128000,9] ,"y":{"a":[ ]}}"#);
        assert_eq!(raw("{}").with_number("n", 7).as_str(), r#"{"n":7}"#);
        assert_eq!(raw("null").with_number("n", 7).as_str(), "null");
    }
}

//! Strict reading of msgpack maps, as vLLM's `msgspec` does it: a string is no binary, a float is no integer, the order of
//! keys is free, unknown keys are ignored, the last of equal keys counts.

use bytes::Bytes;
use rmpv::{Value, ValueRef};

use crate::handshake::HandshakeError;

/// The most bytes of one document. Reading needs up to 40 times as much for a moment.
pub(crate) const MAX_BYTES: usize = 2 * 1024 * 1024;
/// Nesting; `rmpv` counts two for each array or map.
const MAX_DEPTH: u16 = 64;

/// Reads one whole document.
pub(crate) fn read<'a>(what: &'static str, mut bytes: &'a [u8]) -> Result<ValueRef<'a>, HandshakeError> {
    if bytes.len() > MAX_BYTES {
        return Err(HandshakeError::TooLarge { what, len: bytes.len(), limit: MAX_BYTES });
    }
    let value = rmpv::decode::read_value_ref_with_max_depth(&mut bytes, usize::from(MAX_DEPTH))
        .map_err(|source| HandshakeError::Msgpack { what, source })?;
    if bytes.is_empty() { Ok(value) } else { Err(HandshakeError::Trailing { what, bytes: bytes.len() }) }
}

/// Writes one document.
pub(crate) fn write(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    // A Vec takes every write; what it holds if that ever changes is refused by the reader.
    rmpv::encode::write_value(&mut out, value).ok();
    out
}

/// A map with string keys.
pub(crate) struct Map<'a> {
    what: &'static str,
    entries: Vec<(ValueRef<'a>, ValueRef<'a>)>,
}

impl<'a> Map<'a> {
    pub(crate) fn read(what: &'static str, bytes: &'a [u8]) -> Result<Self, HandshakeError> {
        let ValueRef::Map(entries) = read(what, bytes)? else { return Err(HandshakeError::NotAMap { what }) };
        Ok(Self { what, entries })
    }

    fn get(&self, field: &str) -> Option<&ValueRef<'a>> {
        let mut newest_first = self.entries.iter().rev();
        newest_first.find(|(key, _)| text(key) == Some(field)).map(|(_, value)| value)
    }

    /// A field that must be there.
    pub(crate) fn required<T>(
        &self,
        field: &'static str,
        expected: &'static str,
        convert: impl Fn(&ValueRef<'a>) -> Option<T>,
    ) -> Result<T, HandshakeError> {
        let value = self.get(field).ok_or(HandshakeError::Missing { what: self.what, field })?;
        convert(value).ok_or(HandshakeError::Field { what: self.what, field, expected })
    }

    /// A field that may be absent.
    pub(crate) fn or<T>(
        &self,
        field: &'static str,
        expected: &'static str,
        default: T,
        convert: impl Fn(&ValueRef<'a>) -> Option<T>,
    ) -> Result<T, HandshakeError> {
        if self.get(field).is_none() { Ok(default) } else { self.required(field, expected, convert) }
    }
}

pub(crate) fn text<'b>(value: &'b ValueRef<'_>) -> Option<&'b str> {
    if let ValueRef::String(text) = value { text.as_str() } else { None }
}

pub(crate) fn string(value: &ValueRef<'_>) -> Option<String> {
    text(value).map(str::to_owned)
}

pub(crate) fn binary(value: &ValueRef<'_>) -> Option<Bytes> {
    if let ValueRef::Binary(bytes) = value { Some(Bytes::copy_from_slice(bytes)) } else { None }
}

pub(crate) fn integer<T: TryFrom<i128>>(value: &ValueRef<'_>) -> Option<T> {
    let ValueRef::Integer(number) = value else { return None };
    let wide = number.as_u64().map(i128::from).or_else(|| number.as_i64().map(i128::from))?;
    T::try_from(wide).ok()
}

pub(crate) fn number(value: &ValueRef<'_>) -> Option<f64> {
    match value {
        ValueRef::F32(number) => Some(f64::from(*number)),
        ValueRef::F64(number) => Some(*number),
        ValueRef::Integer(number) => number.as_f64(),
        ValueRef::Nil
        | ValueRef::Boolean(_)
        | ValueRef::String(_)
        | ValueRef::Binary(_)
        | ValueRef::Array(_)
        | ValueRef::Map(_)
        | ValueRef::Ext(..) => None,
    }
}

/// A list of at most `max` entries.
pub(crate) fn list<'a, T>(
    value: &ValueRef<'a>,
    max: usize,
    convert: impl Fn(&ValueRef<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let ValueRef::Array(entries) = value else { return None };
    if entries.len() > max { None } else { entries.iter().map(convert).collect() }
}

/// `nil` or a value.
pub(crate) fn nullable<'a, T>(value: &ValueRef<'a>, convert: impl Fn(&ValueRef<'a>) -> Option<T>) -> Option<Option<T>> {
    if matches!(value, ValueRef::Nil) { Some(None) } else { convert(value).map(Some) }
}

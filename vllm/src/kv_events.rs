//! vLLM's KV-cache events: what an engine's publisher says about the blocks in its prefix cache. One payload is the msgpack array
//! `[time, [event, …], data-parallel rank]`; an event is a map with `type` (0.32), or an array whose first entry is the type.

use rmpv::ValueRef;

use crate::handshake::HandshakeError;
use crate::msgpack::{MAX_BYTES, integer, list, nullable, read, text};

/// The most bytes of one payload that are read.
pub const MAX_PAYLOAD: usize = MAX_BYTES;

/// The most blocks of one event, and tokens of one block.
const MAX_BLOCKS: usize = 1 << 16;
const MAX_TOKENS: usize = 1 << 20;

const WHAT: &str = "KV events";

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvEvent {
    /// Blocks are in the cache now, each the continuation of the one before.
    Stored {
        /// The engine's names of the blocks.
        blocks: Vec<u64>,
        /// The block that they continue; `None` for the beginning of a prompt.
        parent: Option<u64>,
        /// Their tokens, `block_size` for each.
        tokens: Vec<u32>,
        /// Tokens of one block.
        block_size: u32,
    },
    /// Blocks have left it.
    Removed {
        /// The engine's names of the blocks.
        blocks: Vec<u64>,
    },
    /// The cache is empty.
    Cleared,
}

/// Reads one payload. Events about other memory than the engine's own, about further groups of layers, and about blocks that more
/// than their tokens tells apart (adapters, images, salts) are left out, as are those of unknown types.
///
/// # Errors
/// When it is no such payload.
pub fn read_events(payload: &[u8]) -> Result<Vec<KvEvent>, HandshakeError> {
    let ValueRef::Array(batch) = read(WHAT, payload)? else { return Err(HandshakeError::NotAMap { what: WHAT }) };
    let Some(ValueRef::Array(events)) = batch.get(1) else {
        return Err(HandshakeError::Missing { what: WHAT, field: "events" });
    };
    Ok(events.iter().filter_map(event).collect())
}

/// The places of fields in events that are arrays.
const STORED: [&str; 9] = [
    "type",
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
];
const REMOVED: [&str; 3] = ["type", "block_hashes", "medium"];

fn event(event: &ValueRef<'_>) -> Option<KvEvent> {
    let kind = text(field(event, "type", &REMOVED)?)?;
    let places: &[&str] = if kind == "BlockStored" { &STORED } else { &REMOVED };
    let get = |name| field(event, name, places);
    let is_nil = |name| get(name).is_none_or(|value| matches!(value, ValueRef::Nil));
    let own = get("medium").is_none_or(|medium| matches!(medium, ValueRef::Nil) || text(medium) == Some("GPU"));
    let first_group = is_nil("group_idx") || get("group_idx").and_then(integer::<u32>) == Some(0);
    match kind {
        "AllBlocksCleared" => Some(KvEvent::Cleared),
        _ if !own || !first_group => None,
        "BlockRemoved" => Some(KvEvent::Removed { blocks: list(get("block_hashes")?, MAX_BLOCKS, hash)? }),
        "BlockStored" => {
            let plain = |value: &ValueRef<'_>| {
                let no_key = |key: &ValueRef<'_>| matches!(key, ValueRef::Nil);
                no_key(value) || matches!(value, ValueRef::Array(keys) if keys.iter().all(no_key))
            };
            if !is_nil("lora_id") || !is_nil("lora_name") || !get("extra_keys").is_none_or(plain) {
                return None;
            }
            let blocks = list(get("block_hashes")?, MAX_BLOCKS, hash)?;
            let tokens = list(get("token_ids")?, MAX_TOKENS, integer)?;
            let block_size: u32 = integer(get("block_size")?).filter(|size| *size > 0)?;
            let parent = nullable(get("parent_block_hash")?, hash)?;
            let whole = usize::try_from(block_size).ok()?.checked_mul(blocks.len())? == tokens.len();
            whole.then_some(KvEvent::Stored { blocks, parent, tokens, block_size })
        }
        _ => None,
    }
}

fn field<'v, 'a>(event: &'v ValueRef<'a>, name: &str, places: &[&str]) -> Option<&'v ValueRef<'a>> {
    if let ValueRef::Map(entries) = event {
        return entries.iter().rev().find(|(key, _)| text(key) == Some(name)).map(|(_, value)| value);
    }
    let ValueRef::Array(entries) = event else { return None };
    entries.get(places.iter().position(|place| *place == name)?)
}

/// A block's name: an integer, or bytes of which the last eight do.
fn hash(value: &ValueRef<'_>) -> Option<u64> {
    if let ValueRef::Binary(bytes) = value {
        return bytes.last_chunk().map(|last| u64::from_be_bytes(*last));
    }
    integer(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmpv::Value;

    use super::*;

    /// Written by vLLM 0.32.0's own publisher types.
    const FROM_VLLM: &str = "93cb3ff80000000000009388a474797065ab426c6f636b53746f726564ac626c6f636b5f686173686573920102b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964739405060708aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c083a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391c4080102030405060708a66d656469756da347505581a474797065b0416c6c426c6f636b73436c656172656401";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
    }

    fn batch(events: Vec<Value>) -> Vec<u8> {
        crate::msgpack::write(&Value::Array(vec![Value::F64(0.0), Value::Array(events)]))
    }

    fn stored(change: (&str, Value)) -> Value {
        let ids = |ids: &[u64]| Value::Array(ids.iter().map(|id| Value::from(*id)).collect());
        let mut fields = vec![
            ("type", Value::from("BlockStored")),
            ("block_hashes", ids(&[1])),
            ("parent_block_hash", Value::from(9)),
            ("token_ids", ids(&[5, 6])),
            ("block_size", Value::from(2)),
            ("lora_id", Value::Nil),
            ("medium", Value::from("GPU")),
            ("lora_name", Value::Nil),
        ];
        fields.retain(|(name, _)| *name != change.0);
        fields.push(change);
        Value::Map(fields.into_iter().map(|(name, value)| (Value::from(name), value)).collect())
    }

    #[test]
    fn what_vllm_writes_is_read() {
        let events = read_events(&bytes(FROM_VLLM)).unwrap();
        let stored = KvEvent::Stored { blocks: vec![1, 2], parent: None, tokens: vec![5, 6, 7, 8], block_size: 2 };
        assert_eq!(events, [stored, KvEvent::Removed { blocks: vec![0x0102_0304_0506_0708] }, KvEvent::Cleared]);
    }

    #[test]
    fn events_as_arrays_are_read_too() {
        let ids = |ids: &[u64]| Value::Array(ids.iter().map(|id| Value::from(*id)).collect());
        let event = vec![Value::from("BlockStored"), ids(&[1]), Value::Nil, ids(&[5, 6]), Value::from(2), Value::Nil];
        let expected = KvEvent::Stored { blocks: vec![1], parent: None, tokens: vec![5, 6], block_size: 2 };
        assert_eq!(read_events(&batch(vec![Value::Array(event)])).unwrap(), [expected]);
    }

    #[test]
    fn what_tokens_do_not_name_is_left_out() {
        let one = |change| read_events(&batch(vec![stored(change)])).unwrap().len();
        assert_eq!(one(("extra_keys", Value::Array(vec![Value::Nil]))), 1);
        assert_eq!(one(("extra_keys", Value::Array(vec![Value::Array(vec![Value::from("salt")])]))), 0);
        assert_eq!(one(("lora_name", Value::from("a"))), 0);
        assert_eq!(one(("medium", Value::from("CPU"))), 0);
        assert_eq!(one(("group_idx", Value::from(0))), 1);
        assert_eq!(one(("group_idx", Value::from(1))), 0);
        assert_eq!(one(("token_ids", Value::Array(vec![]))), 0, "a block without its tokens");
        assert_eq!(one(("type", Value::from("Later"))), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(read_events(&bytes));
        }
    }
}

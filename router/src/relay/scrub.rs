//! A decode engine's own transfer parameters, which a bidirectional connector puts into its answers, are for no client: what
//! is in them is blanked as it passes. No byte is added or taken away, so nothing has to be held back or counted again.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::{memmem, memrchr};

/// A quote inside of a JSON string is escaped, so these bytes are never part of a longer string.
const KEY: &[u8] = br#""kv_transfer_params""#;

/// Made once: making it costs more than looking through a streamed event.
static FIND_KEY: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(KEY));

/// Where in an answer the last byte was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Elsewhere, or this far into the key.
    Text(usize),
    /// Behind the key.
    Key,
    /// Behind its colon.
    Colon,
    /// In the value: so many braces and brackets deep, and where in a string.
    Value { depth: usize, string: InString },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InString {
    No,
    Yes,
    Escaped,
}

/// Blanks one answer's parameters, whatever the pieces it comes in.
#[derive(Debug)]
pub(crate) struct Scrub(At);

impl Scrub {
    pub(crate) fn new() -> Self {
        Self(At::Text(0))
    }

    /// The next bytes, as the client may see them: the very same ones unless they hold parameters.
    pub(crate) fn pass(&mut self, data: Bytes) -> Bytes {
        let mut edited: Option<Vec<u8>> = None;
        let mut at = 0;
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            if self.0 == At::Text(0) {
                match FIND_KEY.find(rest) {
                    Some(found) => at += found + KEY.len(),
                    None => {
                        self.0 = At::Text(begun(rest));
                        break;
                    }
                }
                self.0 = At::Key;
                continue;
            }
            let Some(byte) = rest.first().copied() else { break };
            let shown = self.step(byte);
            if shown != byte
                && let Some(place) = edited.get_or_insert_with(|| data.to_vec()).get_mut(at)
            {
                *place = shown;
            }
            at += 1;
        }
        edited.map_or(data, Bytes::from)
    }

    /// Takes one byte and says what is shown for it.
    fn step(&mut self, byte: u8) -> u8 {
        let elsewhere = At::Text(usize::from(byte == b'"'));
        let blank = if matches!(byte, b'\n' | b'\r') { byte } else { b' ' };
        let (next, shown) = match (self.0, byte) {
            (At::Text(matched), _) => match KEY.get(matched) {
                Some(wanted) if *wanted == byte && matched + 1 == KEY.len() => (At::Key, byte),
                Some(wanted) if *wanted == byte => (At::Text(matched + 1), byte),
                Some(_) | None => (elsewhere, byte),
            },
            (At::Key, b':') => (At::Colon, byte),
            (At::Key | At::Colon, b' ' | b'\t' | b'\n' | b'\r') => (self.0, byte),
            (At::Colon, b'{' | b'[') => (At::Value { depth: 1, string: InString::No }, byte),
            (At::Colon, b'"') => (At::Value { depth: 0, string: InString::Yes }, byte),
            // `null`, mostly.
            (At::Key | At::Colon, _) => (elsewhere, byte),
            (At::Value { depth, string: InString::Escaped }, _) => (At::Value { depth, string: InString::Yes }, blank),
            (At::Value { depth, string: InString::Yes }, b'\\') => {
                (At::Value { depth, string: InString::Escaped }, blank)
            }
            (At::Value { depth: 0, string: InString::Yes }, b'"') => (At::Text(0), byte),
            (At::Value { depth, string: InString::Yes }, b'"') => (At::Value { depth, string: InString::No }, blank),
            (At::Value { depth, string: InString::No }, b'"') => (At::Value { depth, string: InString::Yes }, blank),
            (At::Value { depth, string: InString::No }, b'{' | b'[') => {
                (At::Value { depth: depth + 1, string: InString::No }, blank)
            }
            (At::Value { depth: 0 | 1, string: InString::No }, b'}' | b']') => (At::Text(0), byte),
            (At::Value { depth, string: InString::No }, b'}' | b']') => {
                (At::Value { depth: depth - 1, string: InString::No }, blank)
            }
            (value @ At::Value { .. }, _) => (value, blank),
        };
        self.0 = next;
        shown
    }
}

/// How much of the key the end of some bytes may be: the key's only other quote is its last byte, so it begins at the last quote.
fn begun(bytes: &[u8]) -> usize {
    let end = bytes.get(bytes.len().saturating_sub(KEY.len() - 1)..).unwrap_or(bytes);
    let tail = memrchr(b'"', end).and_then(|quote| end.get(quote..)).unwrap_or_default();
    if KEY.starts_with(tail) { tail.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, piece: usize) -> String {
        let mut scrub = Scrub::new();
        let pieces = text.as_bytes().chunks(piece).map(|piece| scrub.pass(Bytes::copy_from_slice(piece)));
        String::from_utf8(pieces.collect::<Vec<_>>().concat()).unwrap()
    }

    #[test]
    fn parameters_are_blanked_in_place_whatever_the_pieces() {
        for (text, expected) in [
            (
                r#"{"kv_transfer_params":{"a":"}\"","b":[1,{}]},"x":1}"#,
                r#"{"kv_transfer_params":{                    },"x":1}"#,
            ),
            (r#"{"a":{"kv_transfer_params" : ["b"]}}"#, r#"{"a":{"kv_transfer_params" : [   ]}}"#),
            (r#"data: {"kv_transfer_params":"h\"i","é":2}"#, r#"data: {"kv_transfer_params":"    ","é":2}"#),
            (
                r#"{"kv_transfer_params":{"a":1},"kv_transfer_params":{"b":2}}"#,
                r#"{"kv_transfer_params":{     },"kv_transfer_params":{     }}"#,
            ),
        ] {
            for piece in 1..=text.len() {
                assert_eq!(shown(text, piece), expected, "pieces of {piece}");
            }
        }
    }

    #[test]
    fn all_else_passes_as_it_is() {
        for text in [
            r#"{"kv_transfer_params":null,"usage":{"prompt_tokens":3}}"#,
            r#"{"text":"say \"kv_transfer_params\": {\"a\":1}","kv":["kv_transfer_params",{"a":1}]}"#,
            r#"{"kv_transfer_param":{"a":1},"kv_transfer_paramss":{"a":1},"""kv_transfer_params"#,
            "",
        ] {
            for piece in 1..=text.len().max(1) {
                assert_eq!(shown(text, piece), text, "pieces of {piece}");
            }
        }
        let data = Bytes::from_static(br#"{"kv_transfer_params":null}"#);
        assert_eq!(Scrub::new().pass(data.clone()).as_ptr(), data.as_ptr(), "not even copied");
    }
}

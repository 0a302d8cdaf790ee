//! A reader of JSON objects that keeps every byte: what lies before each top-level member, its key and its value as written.

#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

/// One member.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Member<'a> {
    /// From the end of the one before (or the opening brace) to the key.
    pub(crate) gap: &'a [u8],
    /// From the key's quote to the value.
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl Member<'_> {
    /// What the key means; an escape that is not a character means nothing that anybody looks for.
    pub(crate) fn name(&self) -> String {
        let end = end_of_string(self.key, 0);
        serde_json::from_slice(&self.key[..end]).unwrap_or_default()
    }
}

/// An object: what is before its first member, the members, what is behind the last.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    pub(crate) head: &'a [u8],
    pub(crate) members: Vec<Member<'a>>,
    pub(crate) tail: &'a [u8],
}

/// Reads an object that is known to be valid.
pub(crate) fn read(text: &[u8]) -> Object<'_> {
    let open = text.iter().position(|byte| *byte == b'{').unwrap() + 1;
    let (mut members, mut at) = (Vec::new(), open);
    loop {
        let mut key = at;
        while matches!(text[key], b' ' | b'\t' | b'\n' | b'\r' | b',') {
            key += 1;
        }
        if text[key] == b'}' {
            return Object { head: &text[..open], members, tail: &text[at..] };
        }
        let mut value = end_of_string(text, key);
        while matches!(text[value], b' ' | b'\t' | b'\n' | b'\r' | b':') {
            value += 1;
        }
        let end = end_of_value(text, value);
        members.push(Member { gap: &text[at..key], key: &text[key..value], value: &text[value..end] });
        at = end;
    }
}

fn end_of_string(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn end_of_value(text: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    loop {
        match text[at] {
            b'"' => at = end_of_string(text, at),
            b'{' | b'[' => (at, depth) = (at + 1, depth + 1),
            b'}' | b']' if depth > 0 => (at, depth) = (at + 1, depth - 1),
            b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return at,
            _ => at += 1,
        }
        if depth == 0 && matches!(text[at - 1], b'"' | b'}' | b']') {
            return at;
        }
    }
}

#[test]
fn nothing_is_lost_in_reading() {
    let text = b" { \"a\" : [1, {\"b\":\"}\\\"\"}] ,\"c\":1e400\n, \"d\":{} , \"e\":\"x\"} ";
    let object = read(text);
    let mut whole = object.head.to_vec();
    for member in &object.members {
        whole.extend([member.gap, member.key, member.value].concat());
    }
    whole.extend(object.tail);
    assert_eq!(whole, text);
    assert_eq!(object.members.iter().map(Member::name).collect::<String>(), "acde");
    assert_eq!(read(b"{ }").members.len(), 0);
}

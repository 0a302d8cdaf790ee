//! Where the top-level members of a JSON object lie in its bytes.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, Range};

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{BodyError, MAX_BODY, MAX_DEPTH, MAX_MEMBERS};

/// One member: where it stands and what its key means.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    key: Key,
    /// From the key's opening quote to the value's last byte.
    pub(crate) span: Range<usize>,
    /// Where the value starts; it ends with the span.
    pub(crate) value_start: usize,
}

/// What a key means.
#[derive(Clone, Debug)]
enum Key {
    /// What stands between its quotes: these bytes of the body.
    Plain(Range<usize>),
    /// It is written with escapes.
    Escaped(Box<str>),
    /// It has a lone surrogate, and names nothing that we know.
    Nothing,
}

impl Member {
    /// What the key means; `body` is what the member was found in.
    pub(crate) fn key<'a>(&'a self, body: &'a [u8]) -> Option<&'a [u8]> {
        match &self.key {
            Key::Plain(range) => body.get(range.clone()),
            Key::Escaped(meant) => Some(meant.as_bytes()),
            Key::Nothing => None,
        }
    }

    /// Whether this is its key.
    pub(crate) fn is(&self, body: &[u8], key: &str) -> bool {
        self.key(body) == Some(key.as_bytes())
    }
}

/// Where everything is in a body.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Behind the opening brace.
    pub(crate) open: usize,
    /// The members in order.
    pub(crate) members: Members,
    /// Length of the body.
    pub(crate) len: usize,
}

/// Members, in memory that is used again for those of another body.
#[derive(Clone, Debug)]
pub(crate) struct Members(Vec<Member>);

/// Members of which most bodies and answers have fewer.
const USUAL_MEMBERS: usize = 16;
/// Lists of usual length that are kept on each thread: a request reads three bodies.
const SPARE_LISTS: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Vec<Member>>> = const { RefCell::new(Vec::new()) };
}

impl Members {
    fn none() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self(spare.unwrap_or_else(|| Vec::with_capacity(USUAL_MEMBERS)))
    }
}

impl Deref for Members {
    type Target = [Member];

    fn deref(&self) -> &[Member] {
        &self.0
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        let mut list = std::mem::take(&mut self.0);
        list.clear();
        if list.capacity() == USUAL_MEMBERS {
            // On a thread that ends there is nothing to be kept.
            let kept = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < SPARE_LISTS {
                    spare.push(list);
                }
            });
            kept.unwrap_or_default();
        }
    }
}

/// A body and its members in order.
pub(crate) struct Scanned<'a> {
    pub(crate) text: &'a str,
    pub(crate) layout: Layout,
}

impl<'a> Scanned<'a> {
    /// The value that counts for a key: the last one, as in Python's `json`. A `null` is no value.
    pub(crate) fn get(&self, key: &str) -> Option<&'a str> {
        let value = self.values(key).last()?;
        (value != "null").then_some(value)
    }

    /// All values of a key.
    pub(crate) fn values(&self, key: &str) -> impl Iterator<Item = &'a str> {
        let text = self.text;
        let named = self.layout.members.iter().filter(move |member| member.is(text.as_bytes(), key));
        named.map(move |member| text.get(member.value_start..member.span.end).unwrap_or_default())
    }
}

/// Checks a whole body and finds its members. A byte order mark before it is passed over, as Python's `json` does.
pub(crate) fn scan(body: &[u8]) -> Result<Scanned<'_>, BodyError> {
    if body.len() > MAX_BODY {
        return Err(BodyError::TooLarge(body.len()));
    }
    let text = std::str::from_utf8(body).map_err(BodyError::NotUtf8)?;
    // serde_json skips raw values without a limit of depth; vLLM's parser would run into one.
    if opened(body) > MAX_DEPTH && depth(text) > MAX_DEPTH {
        return Err(BodyError::TooDeep);
    }
    let json = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = serde_json::Deserializer::from_str(json);
    let (members, found) = parser.deserialize_map(Finder { text }).map_err(|error| refuse(json, error))?;
    parser.end().map_err(BodyError::NotJson)?;
    if found > MAX_MEMBERS {
        return Err(BodyError::TooManyMembers(found));
    }
    let open = text.find('{').map_or(0, |brace| brace + 1);
    Ok(Scanned { text, layout: Layout { open, members, len: text.len() } })
}

fn refuse(text: &str, error: serde_json::Error) -> BodyError {
    let other = serde_json::from_str::<&RawValue>(text).is_ok_and(|raw| !raw.get().starts_with('{'));
    if other { BodyError::NotAnObject } else { BodyError::NotJson(error) }
}

/// Finds the members of what is parsed, which is part of `text`.
struct Finder<'a> {
    text: &'a str,
}

impl Finder<'_> {
    fn place(&self, part: &str) -> Range<usize> {
        let start = part.as_ptr().addr() - self.text.as_ptr().addr();
        start..start + part.len()
    }

    fn key(&self, key: &str) -> Key {
        match key.strip_prefix('"').and_then(|key| key.strip_suffix('"')) {
            Some(plain) if memchr::memchr(b'\\', plain.as_bytes()).is_none() => Key::Plain(self.place(plain)),
            Some(_) | None => serde_json::from_str(key).map_or(Key::Nothing, Key::Escaped),
        }
    }
}

impl<'de> Visitor<'de> for Finder<'_> {
    /// The first [`MAX_MEMBERS`], and how many there are.
    type Value = (Members, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut members, mut found) = (Members::none(), 0_usize);
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            found += 1;
            if found <= MAX_MEMBERS {
                let value = self.place(value.get());
                let span = self.place(key.get()).start..value.end;
                members.0.push(Member { key: self.key(key.get()), span, value_start: value.start });
            }
        }
        Ok((members, found))
    }
}

/// How many brackets there are to open something: no text is nested deeper.
fn opened(text: &[u8]) -> usize {
    memchr::memchr2_iter(b'[', b'{', text).count()
}

/// The deepest nesting of brackets outside strings. Exact for valid JSON; for anything else the parser decides.
fn depth(text: &str) -> usize {
    let (mut now, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                now += 1;
                deepest = deepest.max(now);
            }
            b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

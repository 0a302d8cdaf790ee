//! Edits of the top-level members of a body. What is kept of a long one is not copied: edited, it is a list of pieces, most of them
//! parts of the original.

use std::borrow::Cow;
use std::ops::Range;

use super::scan::{Layout, scan};
use super::{BodyError, Endpoint};
use crate::params::RawParams;
use bytes::Bytes;

/// What a prefill is asked for; only `do_remote_decode` matters to vLLM 0.32 (protocol doc §4.2).
const PREFILL_PARAMS: &str = concat!(
    r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"#,
    r#""remote_block_ids":null,"remote_host":null,"remote_port":null}"#
);
const PARAMS: &str = "kv_transfer_params";
const GUIDED: &str = "guided_";
/// Below this a copy costs less than several writes.
const WORTH_SHARING: usize = 64 * 1024;
/// Fields that a one-token answer does not need, or that vLLM refuses beside `max_tokens: 1`, without streaming, or
/// (`logprob_token_ids`) without another of them.
const NOT_FOR_PREFILL: [(&str, Edit<'_>); 10] = [
    ("stream_options", Edit::Remove),
    ("min_tokens", Edit::Remove),
    ("logprobs", Edit::Remove),
    ("top_logprobs", Edit::Remove),
    ("prompt_logprobs", Edit::Remove),
    ("logprob_token_ids", Edit::Remove),
    ("echo", Edit::Remove),
    ("best_of", Edit::Remove),
    ("structured_outputs", Edit::Remove),
    ("return_token_ids", Edit::Remove),
];

/// The most edits of one body.
const MOST_EDITS: usize = 24;

/// An edited body: one piece of memory, or several when it is long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    first: Bytes,
    rest: Vec<Bytes>,
}

impl Pieces {
    /// Bytes of all pieces.
    pub fn length(&self) -> usize {
        self.iter().map(Bytes::len).sum()
    }

    /// The pieces in order; some may be empty.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// The first piece, and those that follow it.
    pub fn into_parts(self) -> (Bytes, Vec<Bytes>) {
        (self.first, self.rest)
    }

    /// All of it in one piece.
    pub fn concat(self) -> Bytes {
        if self.rest.is_empty() {
            return self.first;
        }
        let mut whole = Vec::with_capacity(self.length());
        self.iter().for_each(|piece| whole.extend_from_slice(piece));
        whole.into()
    }
}

impl From<Bytes> for Pieces {
    fn from(first: Bytes) -> Self {
        Self { first, rest: Vec::new() }
    }
}

/// What happens to one named member.
#[derive(Clone, Debug)]
pub(crate) enum Edit<'a> {
    Remove,
    /// Removes every member whose key starts with the name.
    RemovePrefixed,
    /// Replaces the value of the first copy and removes the others.
    Replace(Cow<'a, str>),
    /// The same, and adds the member when there is none.
    Set(Cow<'a, str>),
}

/// What a prefill gets: one token, not streamed, KV to be kept for a reader.
pub(super) fn for_prefill(endpoint: Endpoint, body: &Bytes, layout: &Layout, text_only_chat: bool) -> Pieces {
    const ONE: Cow<'_, str> = Cow::Borrowed("1");
    const RESPONSE_FORMAT: (&str, Edit<'_>) = ("response_format", Edit::Remove);
    const NEW_NAME: (&str, Edit<'_>) = ("max_completion_tokens", Edit::Replace(ONE));
    const IDS: (&str, Edit<'_>) = ("return_token_ids", Edit::Set(Cow::Borrowed("true")));
    const STORE: (&str, Edit<'_>) = ("store", Edit::Set(Cow::Borrowed("false")));
    const REQUEST_ID: (&str, Edit<'_>) = ("request_id", Edit::Remove);
    let has = |key: &str| layout.members.iter().any(|member| member.is(body, key));
    let only_new_name = endpoint == Endpoint::Chat && has("max_completion_tokens") && !has("max_tokens");
    let all = [
        (endpoint.limit_field(), if only_new_name { Edit::Replace(ONE) } else { Edit::Set(ONE) }),
        ("stream", Edit::Set("false".into())),
        ("n", Edit::Replace(ONE)),
        (PARAMS, Edit::Set(PREFILL_PARAMS.into())),
        (GUIDED, Edit::RemovePrefixed),
    ];
    // Before those that are not for a prefill: of two edits of one member the first counts.
    let its_own: &[(&str, Edit<'_>)] = match endpoint {
        Endpoint::Completions => &[NEW_NAME, RESPONSE_FORMAT],
        // Chat templates may put `response_format` into the prompt (in vLLM 0.32 those of Kimi K3 and Cohere), and P's
        // prompt must be D's.
        Endpoint::Chat if text_only_chat => &[NEW_NAME, IDS],
        Endpoint::Chat => &[NEW_NAME],
        // The engine would keep the answer for ever, and would take the client's id of the request before ours.
        Endpoint::Responses => &[STORE, REQUEST_ID],
        Endpoint::Messages => &[],
    };
    edited(body, layout, &[&all, its_own, &NOT_FOR_PREFILL])
}

/// What a decode gets, or an engine that does all by itself: the client's transfer parameters are replaced, or removed.
pub(super) fn decode_edits(params: Option<&RawParams>) -> [(&'static str, Edit<'_>); 1] {
    [(PARAMS, params.map_or(Edit::Remove, |params| Edit::Set(params.as_str().into())))]
}

/// The body of a request that is no completion: whatever it holds, no transfer parameters. Anything but an object has none.
///
/// # Errors
/// [`BodyError`] for a body that is no JSON or that smuggles transfer parameters.
pub fn without_params(body: &Bytes) -> Result<Pieces, BodyError> {
    match scan(body) {
        Ok(scanned) => {
            super::inspect::refuse_smuggled(&scanned)?;
            Ok(edited(body, &scanned.layout, &[&decode_edits(None)]))
        }
        Err(BodyError::NotAnObject) => Ok(body.clone().into()),
        Err(error) => Err(error),
    }
}

/// A part of an edited body.
#[derive(Clone)]
enum Part<'a> {
    /// These bytes of the original.
    Kept(Range<usize>),
    /// Others.
    New(&'a str),
}

impl<'a> Part<'a> {
    fn bytes(&self, body: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Kept(range) => body.get(range.clone()).unwrap_or_default(),
            Self::New(text) => text.as_bytes(),
        }
    }
}

/// Edits, in groups; of two for one member the first counts.
type Edits<'a> = &'a [&'a [(&'a str, Edit<'a>)]];

/// The body with its edits. `layout` is the body's; long parts of it that are kept are shared with it.
pub(crate) fn edited(body: &Bytes, layout: &Layout, edits: Edits<'_>) -> Pieces {
    if body.len() >= WORTH_SHARING {
        return in_pieces(body, layout, edits);
    }
    let mut length = 0;
    each_part(body, layout, edits, |part| length += part.bytes(body).len());
    let mut whole = Vec::with_capacity(length);
    each_part(body, layout, edits, |part| whole.extend_from_slice(part.bytes(body)));
    Bytes::from(whole).into()
}

fn in_pieces(body: &Bytes, layout: &Layout, edits: Edits<'_>) -> Pieces {
    let mut parts: Vec<Part<'_>> = Vec::new();
    each_part(body, layout, edits, |part| match (parts.last_mut(), part) {
        (Some(Part::Kept(last)), Part::Kept(next)) if last.end == next.start => last.end = next.end,
        (_, part) => parts.push(part),
    });
    let mut pieces = Vec::new();
    for parts in parts.chunk_by(|one, next| matches!((one, next), (Part::New(_), Part::New(_)))) {
        match parts {
            [Part::Kept(range)] => pieces.push(body.slice(range.start.min(body.len())..range.end.min(body.len()))),
            new => {
                let mut text = Vec::new();
                new.iter().for_each(|part| text.extend_from_slice(part.bytes(body)));
                pieces.push(Bytes::from(text));
            }
        }
    }
    let mut pieces = pieces.into_iter();
    Pieces { first: pieces.next().unwrap_or_default(), rest: pieces.collect() }
}

fn edit_is_for((name, edit): &(&str, Edit<'_>), key: &[u8]) -> bool {
    match edit {
        Edit::RemovePrefixed => key.starts_with(name.as_bytes()),
        Edit::Remove | Edit::Replace(_) | Edit::Set(_) => name.as_bytes() == key,
    }
}

/// Goes through the parts of an edited body. The bytes between two members belong to the later one, so that removing a member removes one
/// comma.
fn each_part<'a>(body: &[u8], layout: &Layout, edits: Edits<'a>, mut part: impl FnMut(Part<'a>)) {
    let edits = || edits.iter().copied().flatten();
    let mut done = [false; MOST_EDITS];
    debug_assert!(edits().count() <= done.len(), "a further edit would be made to no member");
    part(Part::Kept(0..layout.members.first().map_or(layout.open, |first| first.span.start)));
    let mut before = layout.open;
    let mut written = false;
    for member in layout.members.iter() {
        let gap = before..member.span.start;
        before = member.span.end;
        let edit = member.key(body).and_then(|key| edits().zip(&mut done).find(|(edit, _)| edit_is_for(edit, key)));
        let replacement = match edit {
            None => None,
            Some(((_, Edit::Remove | Edit::RemovePrefixed), _)) => continue,
            Some(((_, Edit::Replace(value) | Edit::Set(value)), done)) => {
                if std::mem::replace(done, true) {
                    continue;
                }
                Some(value)
            }
        };
        if written {
            part(Part::Kept(gap));
        }
        written = true;
        match replacement {
            None => part(Part::Kept(member.span.clone())),
            Some(value) => {
                part(Part::Kept(member.span.start..member.value_start));
                part(Part::New(value));
            }
        }
    }
    for ((name, edit), done) in edits().zip(done) {
        if let (Edit::Set(value), false) = (edit, done) {
            for text in [if written { ",\"" } else { "\"" }, name, "\":", value] {
                part(Part::New(text));
            }
            written = true;
        }
    }
    part(Part::Kept(before..layout.len));
}

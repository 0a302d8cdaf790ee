//! Edits of the top-level members of a body. What is kept is not copied: an edited body is a list of pieces, most of them parts
//! of the original.

use std::borrow::Cow;
use std::ops::Range;

use super::scan::{Layout, scan};
use super::{BodyError, Endpoint};
use crate::params::RawParams;
use bytes::{Bytes, BytesMut};

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
const NOT_FOR_PREFILL: [&str; 10] = [
    "stream_options",
    "min_tokens",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "logprob_token_ids",
    "echo",
    "best_of",
    "structured_outputs",
    "return_token_ids",
];

/// The bytes of an edited body, in order.
pub type Pieces = Vec<Bytes>;

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
pub(super) fn prefill_edits(
    endpoint: Endpoint,
    layout: &Layout,
    text_only_chat: bool,
) -> Vec<(&'static str, Edit<'static>)> {
    let has = |key: &str| layout.members.iter().any(|member| member.key.as_deref() == Some(key));
    let one = || Cow::Borrowed("1");
    let only_new_name = endpoint == Endpoint::Chat && has("max_completion_tokens") && !has("max_tokens");
    let mut edits = vec![
        (endpoint.limit_field(), if only_new_name { Edit::Replace(one()) } else { Edit::Set(one()) }),
        ("stream", Edit::Set("false".into())),
        ("n", Edit::Replace(one())),
        (PARAMS, Edit::Set(PREFILL_PARAMS.into())),
        (GUIDED, Edit::RemovePrefixed),
    ];
    edits.extend(NOT_FOR_PREFILL.map(|key| (key, Edit::Remove)));
    match endpoint {
        Endpoint::Completions => {
            edits.extend([("max_completion_tokens", Edit::Replace(one())), ("response_format", Edit::Remove)]);
        }
        // Chat templates may put `response_format` into the prompt (in vLLM 0.32 those of Kimi K3 and Cohere), and P's
        // prompt must be D's.
        Endpoint::Chat => {
            edits.push(("max_completion_tokens", Edit::Replace(one())));
            if text_only_chat {
                edits.retain(|(key, _)| *key != "return_token_ids");
                edits.push(("return_token_ids", Edit::Set("true".into())));
            }
        }
        // The engine would keep the answer for ever, and would take the client's id of the request before ours.
        Endpoint::Responses => {
            edits.extend([("store", Edit::Set("false".into())), ("request_id", Edit::Remove)]);
        }
        Endpoint::Messages => {}
    }
    edits
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
            Ok(cut(body, &apply(&scanned.layout, &decode_edits(None))))
        }
        Err(BodyError::NotAnObject) => Ok(vec![body.clone()]),
        Err(error) => Err(error),
    }
}

/// A part of an edited body.
pub(crate) enum Part<'a> {
    /// These bytes of the original.
    Kept(Range<usize>),
    /// Others.
    New(Cow<'a, str>),
}

/// The parts as bytes; long kept ones are shared with the original.
pub(crate) fn cut(body: &Bytes, parts: &[Part<'_>]) -> Pieces {
    let kept = |range: &Range<usize>| body.slice(range.start.min(body.len())..range.end.min(body.len()));
    if body.len() < WORTH_SHARING {
        let mut whole = BytesMut::with_capacity(body.len() + 512);
        for part in parts {
            match part {
                Part::Kept(range) => whole.extend_from_slice(&kept(range)),
                Part::New(text) => whole.extend_from_slice(text.as_bytes()),
            }
        }
        return vec![whole.freeze()];
    }
    let piece = |part: &Part<'_>| match part {
        Part::Kept(range) => kept(range),
        Part::New(text) => Bytes::copy_from_slice(text.as_bytes()),
    };
    parts.iter().map(piece).filter(|piece| !piece.is_empty()).collect()
}

fn edit_is_for((name, edit): &(&str, Edit<'_>), key: &str) -> bool {
    match edit {
        Edit::RemovePrefixed => key.starts_with(name),
        Edit::Remove | Edit::Replace(_) | Edit::Set(_) => *name == key,
    }
}

/// The bytes between two members belong to the later one, so that removing a member removes one comma.
pub(crate) fn apply<'a>(layout: &Layout, edits: &'a [(&str, Edit<'a>)]) -> Vec<Part<'a>> {
    let mut out = Out(Vec::new());
    let mut done = vec![false; edits.len()];
    out.keep(0..layout.members.first().map_or(layout.open, |first| first.span.start));
    let mut before = layout.open;
    let mut written = false;
    for member in &layout.members {
        let gap = before..member.span.start;
        before = member.span.end;
        let edit = member.key.as_deref().and_then(|key| edits.iter().position(|edit| edit_is_for(edit, key)));
        let replacement = match edit.and_then(|index| edits.get(index).zip(done.get_mut(index))) {
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
            out.keep(gap);
        }
        written = true;
        match replacement {
            None => out.keep(member.span.clone()),
            Some(value) => {
                out.keep(member.span.start..member.value_start);
                out.write(value.as_ref().into());
            }
        }
    }
    for ((name, edit), done) in edits.iter().zip(done) {
        if let (Edit::Set(value), false) = (edit, done) {
            let comma = if written { "," } else { "" };
            out.write(format!("{comma}\"{name}\":{value}").into());
            written = true;
        }
    }
    out.keep(before..layout.len);
    out.0
}

struct Out<'a>(Vec<Part<'a>>);

impl<'a> Out<'a> {
    fn keep(&mut self, range: Range<usize>) {
        match self.0.last_mut() {
            Some(Part::Kept(last)) if last.end == range.start => last.end = range.end,
            _ => self.0.push(Part::Kept(range)),
        }
    }

    fn write(&mut self, text: Cow<'a, str>) {
        self.0.push(Part::New(text));
    }
}

//! Edits of the top-level members of a body.

use serde_json::Value;

use super::inspect::{is_text_only_chat, refuse_smuggled};
use super::scan::{Scanned, scan};
use super::{BodyError, Endpoint};

/// What a prefill is asked for; only `do_remote_decode` matters to vLLM 0.32 (protocol doc §4.2).
const PREFILL_PARAMS: &str = concat!(
    r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"#,
    r#""remote_block_ids":null,"remote_host":null,"remote_port":null}"#
);
const PARAMS: &str = "kv_transfer_params";
const GUIDED: &str = "guided_";
/// Fields that a one-token answer does not need, or that vLLM refuses beside `max_tokens: 1` or without streaming.
const NOT_FOR_PREFILL: [&str; 10] = [
    "stream_options",
    "min_tokens",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "echo",
    "best_of",
    "response_format",
    "structured_outputs",
    "return_token_ids",
];

/// What happens to one named member.
enum Edit<'a> {
    Remove,
    /// Removes every member whose key starts with the name.
    RemovePrefixed,
    /// Replaces the value of the first copy and removes the others.
    Replace(&'a str),
    /// The same, and adds the member when there is none.
    Set(&'a str),
}

/// The body for the prefill engine: one token, not streamed, KV to be kept for a reader. For a text-only chat the answer
/// will name its prompt's tokens.
///
/// # Errors
/// [`BodyError`] for a body that is no JSON object or that smuggles transfer parameters.
pub fn for_prefill(endpoint: Endpoint, body: &[u8]) -> Result<Vec<u8>, BodyError> {
    let scanned = scan(body)?;
    refuse_smuggled(&scanned)?;
    let has = |key: &str| scanned.members.iter().any(|member| member.key.as_deref() == Some(key));
    let only_new_name = endpoint == Endpoint::Chat && has("max_completion_tokens") && !has("max_tokens");
    let mut edits = vec![
        ("max_completion_tokens", Edit::Replace("1")),
        ("max_tokens", if only_new_name { Edit::Replace("1") } else { Edit::Set("1") }),
        ("stream", Edit::Set("false")),
        ("n", Edit::Replace("1")),
        (PARAMS, Edit::Set(PREFILL_PARAMS)),
    ];
    edits.extend(NOT_FOR_PREFILL.map(|key| (key, Edit::Remove)));
    if endpoint == Endpoint::Chat && is_text_only_chat(&scanned) {
        edits.retain(|(key, _)| *key != "return_token_ids");
        edits.push(("return_token_ids", Edit::Set("true")));
    }
    edits.push((GUIDED, Edit::RemovePrefixed));
    Ok(apply(&scanned, &edits))
}

/// The body for the decode engine, or for an engine that does all by itself: the client's transfer parameters are replaced
/// by `params`, or removed.
///
/// # Errors
/// [`BodyError`] for a body that is no JSON object or that smuggles transfer parameters.
pub fn for_decode(body: &[u8], params: Option<&Value>) -> Result<Vec<u8>, BodyError> {
    let scanned = scan(body)?;
    refuse_smuggled(&scanned)?;
    let params = params.map(Value::to_string);
    let edit = params.as_deref().map_or(Edit::Remove, Edit::Set);
    Ok(apply(&scanned, &[(PARAMS, edit)]))
}

/// An engine's answer (not streamed) for the client: without transfer parameters.
///
/// # Errors
/// [`BodyError`] for an answer that is no JSON object.
pub fn for_client(answer: &[u8]) -> Result<Vec<u8>, BodyError> {
    Ok(apply(&scan(answer)?, &[(PARAMS, Edit::Remove)]))
}

fn edit_is_for((name, edit): &(&str, Edit<'_>), key: &str) -> bool {
    match edit {
        Edit::RemovePrefixed => key.starts_with(name),
        Edit::Remove | Edit::Replace(_) | Edit::Set(_) => *name == key,
    }
}

/// The bytes between two members belong to the later one, so that removing a member removes one comma.
fn apply(scanned: &Scanned<'_>, edits: &[(&str, Edit<'_>)]) -> Vec<u8> {
    let text = scanned.text;
    let slice = |from: usize, to: usize| text.get(from..to).unwrap_or_default().as_bytes();
    let open = text.find('{').map_or(0, |brace| brace + 1);
    let mut out = Vec::with_capacity(text.len() + 256);
    let mut done = vec![false; edits.len()];
    out.extend_from_slice(slice(0, scanned.members.first().map_or(open, |first| first.span.start)));
    let mut before = open;
    let mut written = false;
    for member in &scanned.members {
        let gap = slice(before, member.span.start);
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
            out.extend_from_slice(gap);
        }
        written = true;
        match replacement {
            None => out.extend_from_slice(slice(member.span.start, member.span.end)),
            Some(value) => {
                out.extend_from_slice(slice(member.span.start, member.value_start()));
                out.extend_from_slice(value.as_bytes());
            }
        }
    }
    for ((name, edit), done) in edits.iter().zip(done) {
        if let (Edit::Set(value), false) = (edit, done) {
            let comma = if written { "," } else { "" };
            out.extend_from_slice(format!("{comma}\"{name}\":{value}").as_bytes());
            written = true;
        }
    }
    out.extend_from_slice(slice(before, text.len()));
    out
}

//! What may become of a body on its way to an engine: the list of edits, member by member. Everything else arrives byte for byte.

use serde_json::Value;
use serde_json::value::RawValue;

use crate::members::{Member, read};

/// What becomes of a member.
pub(crate) enum Fate {
    Kept,
    Gone,
    /// Once, with this value.
    Is(&'static str),
    /// Once, with a value that is looked at elsewhere.
    Params,
}

const GONE_AT_PREFILL: [&str; 9] = [
    "stream_options",
    "min_tokens",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "logprob_token_ids",
    "echo",
    "best_of",
    "structured_outputs",
];

fn at_prefill(path: &str, name: &str, text_chat: bool) -> Fate {
    let (completion, chat) = (path == "/v1/completions", path == "/v1/chat/completions");
    match name {
        "kv_transfer_params" => Fate::Params,
        "stream" => Fate::Is("false"),
        "max_tokens" if path != "/v1/responses" => Fate::Is("1"),
        "max_completion_tokens" if completion || chat => Fate::Is("1"),
        "max_output_tokens" if path == "/v1/responses" => Fate::Is("1"),
        "n" => Fate::Is("1"),
        "return_token_ids" if text_chat => Fate::Is("true"),
        "return_token_ids" => Fate::Gone,
        "response_format" if completion => Fate::Gone,
        "store" if path == "/v1/responses" => Fate::Is("false"),
        "request_id" if path == "/v1/responses" => Fate::Gone,
        name if GONE_AT_PREFILL.contains(&name) || name.starts_with("guided_") => Fate::Gone,
        _ => Fate::Kept,
    }
}

/// What P got of a body: its transfer parameters, or what is wrong with it.
pub(crate) fn at_p(path: &str, sent: &[u8], got: &[u8]) -> Result<Value, String> {
    is_json(got)?;
    let limits = read(got);
    let has = |name: &str| limits.members.iter().any(|member| member.name() == name);
    let text_chat = has("return_token_ids");
    if text_chat && path != "/v1/chat/completions" {
        return Err("return_token_ids was added".to_owned());
    }
    let mut wanted = vec!["stream", "kv_transfer_params"];
    // Of a chat the new name alone is enough; other APIs' limits are members like any other.
    wanted.push(match path {
        "/v1/responses" => "max_output_tokens",
        "/v1/chat/completions" if !has("max_tokens") && has("max_completion_tokens") => "max_completion_tokens",
        _ => "max_tokens",
    });
    let params = compare(sent, got, &wanted, |name| at_prefill(path, name, text_chat))?;
    params.ok_or_else(|| "no transfer parameters".to_owned())
}

/// What D got of a body that was split: its transfer parameters, or what is wrong with it.
pub(crate) fn at_d(sent: &[u8], got: &[u8]) -> Result<Value, String> {
    let fate = |name: &str| if name == "kv_transfer_params" { Fate::Params } else { Fate::Kept };
    compare(sent, got, &["kv_transfer_params"], fate)?.ok_or_else(|| "no transfer parameters".to_owned())
}

fn is_json(text: &[u8]) -> Result<(), String> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    serde_json::from_slice::<&RawValue>(text).map(|_| ()).map_err(|error| format!("what arrived is no JSON: {error}"))
}

/// Compares all members; gives back the transfer parameters.
pub(crate) fn compare(
    sent: &[u8],
    got: &[u8],
    wanted: &[&str],
    fate: impl Fn(&str) -> Fate,
) -> Result<Option<Value>, String> {
    is_json(got)?;
    let (before, after) = (read(sent), read(got));
    if before.head != after.head || before.tail != after.tail {
        return Err("the edges differ".to_owned());
    }
    let mut params = None;
    let mut rest = after.members.iter();
    let mut seen: Vec<String> = Vec::new();
    let mut removed_before = false;
    for (place, member) in before.members.iter().enumerate() {
        let name = member.name();
        let fate = fate(&name);
        if matches!(fate, Fate::Gone) || !matches!(fate, Fate::Kept) && seen.contains(&name) {
            removed_before = true;
            continue;
        }
        let arrived = rest.next().ok_or_else(|| format!("{name} is missing"))?;
        if arrived.key != member.key {
            return Err(format!("{name} is not where it was"));
        }
        if !removed_before && place > 0 && arrived.gap != member.gap {
            return Err(format!("what lies before {name} has changed"));
        }
        if matches!(fate, Fate::Kept) {
            if arrived.value != member.value {
                return Err(format!("{name} has changed"));
            }
        } else {
            edited(arrived, &fate, &mut params)?;
            seen.push(name);
        }
        removed_before = false;
    }
    for added in rest {
        let name = added.name();
        if seen.contains(&name) {
            return Err(format!("{name} is there twice"));
        }
        edited(added, &fate(&name), &mut params)?;
        seen.push(name);
    }
    match wanted.iter().find(|name| !seen.iter().any(|seen| seen == *name)) {
        Some(name) => Err(format!("{name} is missing")),
        None => Ok(params),
    }
}

/// A member that may differ from the client's, or is not the client's.
fn edited(member: &Member<'_>, fate: &Fate, params: &mut Option<Value>) -> Result<(), String> {
    match fate {
        Fate::Is(value) if member.value == value.as_bytes() => Ok(()),
        Fate::Is(value) => Err(format!("{} is not {value}", member.name())),
        Fate::Params => {
            *params = Some(serde_json::from_slice(member.value).map_err(|error| error.to_string())?);
            Ok(())
        }
        Fate::Kept | Fate::Gone => Err(format!("{} was added", member.name())),
    }
}

//! What engines must have got of a body: the list of edits, member by member.

#![expect(clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};

use crate::members::{Member, read};

/// What becomes of a member.
enum Fate {
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

/// What P must have got.
pub(crate) fn check_prefill(path: &str, sent: &[u8], got: &[u8]) {
    let text_chat = read(got).members.iter().any(|member| member.name() == "return_token_ids");
    assert!(!text_chat || path == "/v1/chat/completions");
    let mut wanted = vec!["stream", "kv_transfer_params"];
    let limits = read(got);
    let has = |name: &str| limits.members.iter().any(|member| member.name() == name);
    // Of a chat the new name alone is enough; other APIs' limits are members like any other.
    wanted.push(match path {
        "/v1/responses" => "max_output_tokens",
        "/v1/chat/completions" if !has("max_tokens") && has("max_completion_tokens") => "max_completion_tokens",
        _ => "max_tokens",
    });
    let params = compare(sent, got, &wanted, |name| at_prefill(path, name, text_chat)).unwrap();
    assert_eq!(params["do_remote_decode"], json!(true));
    assert_eq!(params["do_remote_prefill"], json!(false));
    assert_eq!(params["remote_host"], Value::Null, "the client's parameters are not P's");
}

/// What D must have got of a split request.
pub(crate) fn check_decode(sent: &[u8], got: &[u8]) {
    let fate = |name: &str| if name == "kv_transfer_params" { Fate::Params } else { Fate::Kept };
    let params = compare(sent, got, &["kv_transfer_params"], fate).unwrap();
    assert!(params["remote_engine_id"].as_str().unwrap().starts_with("virtual_"), "{params}");
}

/// What D must have got of a request that it serves alone.
pub(crate) fn check_alone(sent: &[u8], got: &[u8]) {
    let fate = |name: &str| if name == "kv_transfer_params" { Fate::Gone } else { Fate::Kept };
    assert!(compare(sent, got, &[], fate).is_none());
}

/// Compares all members; gives back the transfer parameters.
fn compare(sent: &[u8], got: &[u8], wanted: &[&str], fate: impl Fn(&str) -> Fate) -> Option<Value> {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
    let context = || format!("\n  sent {}\n   got {}", shown(sent), shown(got));
    let (before, after) = (read(sent), read(got));
    assert!(before.head == after.head && before.tail == after.tail, "the edges differ{}", context());
    let mut params = None;
    let mut rest = after.members.iter().peekable();
    let mut seen: Vec<String> = Vec::new();
    let mut removed_before = false;
    for (place, member) in before.members.iter().enumerate() {
        let name = member.name();
        let value = match fate(&name) {
            Fate::Gone => {
                removed_before = true;
                continue;
            }
            Fate::Is(_) | Fate::Params if seen.contains(&name) => {
                removed_before = true;
                continue;
            }
            Fate::Kept => None,
            Fate::Is(value) => Some(Some(value)),
            Fate::Params => Some(None),
        };
        let arrived = rest.next().unwrap_or_else(|| panic!("{name} is missing{}", context()));
        assert!(arrived.key == member.key, "{name} is not where it was{}", context());
        assert!(removed_before || place == 0 || arrived.gap == member.gap, "before {name}{}", context());
        match value {
            None => assert!(arrived.value == member.value, "{name} has changed{}", context()),
            Some(value) => {
                check_value(arrived, value, &mut params, &context);
                seen.push(name);
            }
        }
        removed_before = false;
    }
    for added in rest {
        let name = added.name();
        assert!(!seen.contains(&name), "{name} is there twice{}", context());
        match fate(&name) {
            Fate::Is(value) => check_value(added, Some(value), &mut params, &context),
            Fate::Params => check_value(added, None, &mut params, &context),
            Fate::Kept | Fate::Gone => panic!("{name} was added{}", context()),
        }
        seen.push(name);
    }
    for name in wanted {
        assert!(seen.iter().any(|seen| seen == name), "{name} is missing{}", context());
    }
    params
}

fn check_value(member: &Member<'_>, value: Option<&str>, params: &mut Option<Value>, context: &impl Fn() -> String) {
    match value {
        Some(value) => assert!(member.value == value.as_bytes(), "{}{}", member.name(), context()),
        None => *params = Some(serde_json::from_slice(member.value).unwrap()),
    }
}

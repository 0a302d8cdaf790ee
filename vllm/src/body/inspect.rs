//! What a router must know of a body before it chooses a path.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::scan::{Scanned, scan};
use super::{BodyError, Endpoint};

/// What a body says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// Which API it is for.
    pub endpoint: Endpoint,
    /// The model asked for.
    pub model: Option<String>,
    /// Whether the answer is a stream.
    pub stream: bool,
    /// Why the request cannot be split into prefill and decode; `None` when it can.
    pub plain_because: Option<PlainReason>,
    /// A chat whose messages are text only: its prompt can be handed over as tokens.
    pub text_only_chat: bool,
    /// The client asked for token ids, so they stay in its reply.
    pub wants_token_ids: bool,
}

/// Why a request goes to one engine whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainReason {
    /// `n` (or `best_of`) above 1: the first reader's notification would free the blocks of all.
    SeveralChoices,
    /// Several prompts: only the first one's parameters come back.
    SeveralPrompts,
    /// `prompt_logprobs` need the prompt's own forward pass on the engine that answers.
    PromptLogprobs,
    /// `echo` with `logprobs` is the same in another dress.
    EchoLogprobs,
    /// Beam search runs many requests inside.
    BeamSearch,
    /// The prompt is given as embeddings.
    PromptEmbeds,
}

impl PlainReason {
    /// For logs, headers and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SeveralChoices => "several_choices",
            Self::SeveralPrompts => "several_prompts",
            Self::PromptLogprobs => "prompt_logprobs",
            Self::EchoLogprobs => "echo_logprobs",
            Self::BeamSearch => "beam_search",
            Self::PromptEmbeds => "prompt_embeds",
        }
    }
}

impl fmt::Display for PlainReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads what matters. Fields that decide about the path must have their plain JSON type: vLLM takes `"true"` and `2.0` for
/// a boolean and an integer, and two readings of one body are how requests end up where they must not.
///
/// # Errors
/// [`BodyError`]: answer 400.
pub fn inspect(endpoint: Endpoint, body: &[u8]) -> Result<Inspected, BodyError> {
    let scanned = scan(body)?;
    refuse_smuggled(&scanned)?;
    let model = scanned.get("model").map(|model| typed("model", "a string", model)).transpose()?;
    Ok(Inspected {
        endpoint,
        model,
        stream: flag(&scanned, "stream")?,
        plain_because: plain_because(endpoint, &scanned)?,
        text_only_chat: endpoint == Endpoint::Chat && is_text_only_chat(&scanned),
        wants_token_ids: flag(&scanned, "return_token_ids")?,
    })
}

/// `vllm_xargs` and transfer parameters end up in the same dictionary of the engine, so one could hide in the other.
pub(super) fn refuse_smuggled(scanned: &Scanned<'_>) -> Result<(), BodyError> {
    for member in scanned.members.iter().filter(|member| member.key.as_deref() == Some("vllm_xargs")) {
        if !member.value.starts_with('{') {
            continue;
        }
        let inner = scan(member.value.as_bytes())?;
        if inner.members.iter().any(|inner| inner.key.as_deref() == Some("kv_transfer_params")) {
            return Err(BodyError::Forbidden("vllm_xargs.kv_transfer_params"));
        }
    }
    Ok(())
}

fn plain_because(endpoint: Endpoint, scanned: &Scanned<'_>) -> Result<Option<PlainReason>, BodyError> {
    for field in ["n", "best_of"] {
        let count = scanned.get(field).map(|count| typed::<i64>(field, "an integer", count)).transpose()?;
        if count.is_some_and(|count| count > 1) {
            return Ok(Some(PlainReason::SeveralChoices));
        }
    }
    if flag(scanned, "use_beam_search")? {
        return Ok(Some(PlainReason::BeamSearch));
    }
    if scanned.get("prompt_logprobs").is_some() {
        return Ok(Some(PlainReason::PromptLogprobs));
    }
    let echo = flag(scanned, "echo")?;
    if echo && scanned.get("logprobs").is_some_and(|logprobs| logprobs != "false") {
        return Ok(Some(PlainReason::EchoLogprobs));
    }
    if endpoint == Endpoint::Chat {
        return Ok(None);
    }
    if scanned.get("prompt_embeds").is_some() {
        return Ok(Some(PlainReason::PromptEmbeds));
    }
    let several = scanned.get("prompt").map(prompts).transpose()?.is_some_and(|prompts| prompts > 1);
    Ok(several.then_some(PlainReason::SeveralPrompts))
}

fn flag(scanned: &Scanned<'_>, field: &'static str) -> Result<bool, BodyError> {
    match scanned.get(field) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(BodyError::Field { field, expected: "true or false" }),
    }
}

fn typed<'a, T: Deserialize<'a>>(field: &'static str, expected: &'static str, value: &'a str) -> Result<T, BodyError> {
    serde_json::from_str(value).map_err(|_| BodyError::Field { field, expected })
}

/// How many prompts: a string or a list of token ids is one, a list of anything else is as many as it has entries.
fn prompts(value: &str) -> Result<usize, BodyError> {
    let error = || BodyError::Field { field: "prompt", expected: "a string, a list of token ids, or a list of those" };
    let Some(list) = value.strip_prefix('[') else {
        return if value.starts_with('"') { Ok(1) } else { Err(error()) };
    };
    match list.trim_start().bytes().next() {
        Some(b'0'..=b'9' | b'-' | b']') => Ok(1),
        _ => serde_json::from_str(value).map(|Count(count)| count).map_err(|_| error()),
    }
}

/// Counts a list's entries without keeping them.
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;
        impl<'de> Visitor<'de> for Counter {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
        }
        deserializer.deserialize_seq(Counter)
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
}

/// Whether every message is text. Whatever looks unusual is not: then the engines tokenize by themselves.
pub(super) fn is_text_only_chat(scanned: &Scanned<'_>) -> bool {
    let Some(messages) = scanned.get("messages") else { return false };
    let Ok(messages) = serde_json::from_str::<Vec<Message<'_>>>(messages) else { return false };
    !messages.is_empty() && messages.iter().all(|message| message.content.is_none_or(|raw| is_text(raw.get())))
}

fn is_text(content: &str) -> bool {
    if content.starts_with('"') || content == "null" {
        return true;
    }
    let Ok(parts) = serde_json::from_str::<Vec<Part<'_>>>(content) else { return false };
    parts.iter().all(|part| matches!(&*part.kind, "text" | "refusal"))
}

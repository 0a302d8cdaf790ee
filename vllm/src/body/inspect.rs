//! What a router must know of a body before it chooses a path.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer as _};
use serde_json::value::RawValue;

use super::scan::{Scanned, scan};
use super::sketch::{Sketch, sketch};
use super::{BodyError, Endpoint, MAX_PROMPTS};

/// What a body says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// Which API it is for.
    pub endpoint: Endpoint,
    /// Whether the answer is a stream.
    pub stream: bool,
    /// Why the request cannot be split into prefill and decode; `None` when it can.
    pub plain_because: Option<PlainReason>,
    /// A chat whose messages are text only: its prompt can be handed over as tokens.
    pub text_only_chat: bool,
    /// The client asked for token ids, so they stay in its reply.
    pub wants_token_ids: bool,
    /// The work that it makes and whose it is.
    pub sketch: Sketch,
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
    /// The engine that answers keeps the response and works on it in the background (`background` of responses).
    Background,
    /// The request goes on from a response that one engine keeps (`previous_response_id`).
    PreviousResponse,
    /// Tools that the engine itself runs, in several generations of one request.
    BuiltInTools,
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
            Self::Background => "background",
            Self::PreviousResponse => "previous_response",
            Self::BuiltInTools => "built_in_tools",
        }
    }
}

impl fmt::Display for PlainReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads what matters, and where each prompt is when there are several. Fields that decide about the path must have their
/// plain JSON type: vLLM takes `"true"` and `2.0` for a boolean and an integer, and two readings of one body are how requests
/// end up where they must not.
pub(super) fn inspected(
    endpoint: Endpoint,
    scanned: &Scanned<'_>,
) -> Result<(Inspected, Vec<Range<usize>>), BodyError> {
    refuse_smuggled(scanned)?;
    if scanned.get("model").is_some_and(|model| !model.starts_with('"')) {
        return Err(BodyError::Field { field: "model", expected: "a string" });
    }
    let (plain_because, prompts) = plain_because(endpoint, scanned)?;
    let inspected = Inspected {
        endpoint,
        stream: flag(scanned, "stream")?,
        plain_because,
        text_only_chat: endpoint == Endpoint::Chat && is_text_only_chat(scanned),
        wants_token_ids: flag(scanned, "return_token_ids")?,
        sketch: sketch(scanned),
    };
    Ok((inspected, prompts))
}

/// `vllm_xargs`, the `extra_args` of `sampling_params` (vLLM 0.32's `/inference/v1/generate`) and transfer parameters end up in the
/// same dictionary of the engine, so one could hide in the other.
pub(super) fn refuse_smuggled(scanned: &Scanned<'_>) -> Result<(), BodyError> {
    refuse_params(scanned, "vllm_xargs", "vllm_xargs.kv_transfer_params")?;
    for sampling in scanned.values("sampling_params").filter(|value| value.starts_with('{')) {
        let place = "sampling_params.extra_args.kv_transfer_params";
        refuse_params(&scan(sampling.as_bytes())?, "extra_args", place)?;
    }
    Ok(())
}

fn refuse_params(scanned: &Scanned<'_>, field: &str, place: &'static str) -> Result<(), BodyError> {
    for value in scanned.values(field).filter(|value| value.starts_with('{')) {
        if scan(value.as_bytes())?.values("kv_transfer_params").next().is_some() {
            return Err(BodyError::Forbidden(place));
        }
    }
    Ok(())
}

type Plain = (Option<PlainReason>, Vec<Range<usize>>);

fn plain_because(endpoint: Endpoint, scanned: &Scanned<'_>) -> Result<Plain, BodyError> {
    match endpoint {
        Endpoint::Completions => {
            if let Some(reason) = several_or_logprobs(scanned)? {
                return Ok((Some(reason), Vec::new()));
            }
            if scanned.get("prompt_embeds").is_some() {
                return Ok((Some(PlainReason::PromptEmbeds), Vec::new()));
            }
            let prompts = scanned.get("prompt").map(|value| prompts(scanned.text, value)).transpose()?;
            let several = prompts.filter(|prompts| prompts.len() > 1);
            Ok((several.as_ref().map(|_| PlainReason::SeveralPrompts), several.unwrap_or_default()))
        }
        Endpoint::Chat => Ok((several_or_logprobs(scanned)?, Vec::new())),
        Endpoint::Responses => Ok((response_reason(scanned)?, Vec::new())),
        Endpoint::Messages => Ok((None, Vec::new())),
    }
}

fn several_or_logprobs(scanned: &Scanned<'_>) -> Result<Option<PlainReason>, BodyError> {
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
    Ok(None)
}

fn response_reason(scanned: &Scanned<'_>) -> Result<Option<PlainReason>, BodyError> {
    if flag(scanned, "background")? {
        return Ok(Some(PlainReason::Background));
    }
    if scanned.get("previous_response_id").is_some() {
        return Ok(Some(PlainReason::PreviousResponse));
    }
    let functions_only =
        scanned.get("tools").is_none_or(|tools| passing::<Part<'_>>(tools, |tool| tool.kind == "function").is_some());
    Ok((!functions_only).then_some(PlainReason::BuiltInTools))
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

/// Where the prompts are: a string or a list of token ids is one (none is listed), a list of anything else is as many as it
/// has entries.
fn prompts(text: &str, value: &str) -> Result<Vec<Range<usize>>, BodyError> {
    let error = || BodyError::Field { field: "prompt", expected: "a string, a list of token ids, or a list of those" };
    let Some(list) = value.strip_prefix('[') else {
        return if value.starts_with('"') { Ok(Vec::new()) } else { Err(error()) };
    };
    match list.trim_start().bytes().next() {
        Some(b'0'..=b'9' | b'-' | b']') => Ok(Vec::new()),
        _ => {
            let Entries(entries) = serde_json::from_str(value).map_err(|_| error())?;
            let start = |raw: &str| raw.as_ptr().addr() - text.as_ptr().addr();
            Ok(entries.into_iter().map(|raw| start(raw.get())..start(raw.get()) + raw.get().len()).collect())
        }
    }
}

/// A list's entries as they are written, up to [`MAX_PROMPTS`] and one.
struct Entries<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collector;
        impl<'de> Visitor<'de> for Collector {
            type Value = Entries<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element::<&RawValue>()? {
                    if entries.len() <= MAX_PROMPTS {
                        entries.push(entry);
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_seq(Collector)
    }
}

/// How many entries a list has, if it is one and each entry passes. Nothing is kept of them: a long list costs no memory.
fn passing<'a, T: Deserialize<'a>>(list: &'a str, passes: fn(&T) -> bool) -> Option<usize> {
    struct Each<T>(fn(&T) -> bool);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Each<T> {
        type Value = usize;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<usize, A::Error> {
            let mut count = 0;
            while let Some(entry) = list.next_element::<T>()? {
                if !(self.0)(&entry) {
                    return Err(A::Error::custom("an entry of another kind"));
                }
                count += 1;
            }
            Ok(count)
        }
    }
    serde_json::Deserializer::from_str(list).deserialize_seq(Each(passes)).ok()
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
    let text = passing::<Message<'_>>(messages, |message| message.content.is_none_or(|raw| is_text(raw.get())));
    text.is_some_and(|messages| messages > 0)
}

fn is_text(content: &str) -> bool {
    if content.starts_with('"') || content == "null" {
        return true;
    }
    passing::<Part<'_>>(content, |part| matches!(&*part.kind, "text" | "refusal")).is_some()
}

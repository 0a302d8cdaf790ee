//! OpenAI request bodies as raw bytes: what a router must know of them, and the few edits that P/D needs.
//!
//! An edit keeps every byte that it is not about: key order, number spelling and whitespace reach the engine as the client
//! wrote them. A key counts by its meaning, so neither an escape in it nor a second copy of it gets past an edit.

mod answer;
mod batch;
pub(crate) mod edit;
mod inspect;
mod read;
pub(crate) mod scan;
mod sketch;
#[cfg(test)]
mod tests;

pub use answer::{AnswerError, PrefillAnswer, prefill_answer};
pub use batch::{PromptPart, merged_answer, merged_usage_chunk, prompt_part};
pub use edit::{Pieces, without_params};
pub use inspect::{Inspected, PlainReason};
pub use read::RequestBody;
pub use sketch::Sketch;

/// The most bytes of a body that is looked at at all; servers set their own, lower limits.
pub const MAX_BODY: usize = 128 * 1024 * 1024;
/// The deepest nesting of a body.
pub const MAX_DEPTH: usize = 128;
/// The most top-level members of a body; each costs many times the five bytes that it may have. OpenAI knows about 60 fields.
pub const MAX_MEMBERS: usize = 1024;

/// The most prompts of a body that are told apart; with more it is only known that there are more.
pub const MAX_PROMPTS: usize = 1024;

/// Which API a body is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/responses`, OpenAI's.
    Responses,
    /// `/v1/messages`, Anthropic's.
    Messages,
}

impl Endpoint {
    /// The path that vLLM and kvgate serve it at.
    pub fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }

    /// The endpoint of a path.
    pub fn of(path: &str) -> Option<Self> {
        [Self::Completions, Self::Chat, Self::Responses, Self::Messages].into_iter().find(|known| known.path() == path)
    }

    /// The field that bounds the answer's length.
    pub(crate) fn limit_field(self) -> &'static str {
        match self {
            Self::Completions | Self::Chat | Self::Messages => "max_tokens",
            Self::Responses => "max_output_tokens",
        }
    }
}

/// Why a body is refused.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Over [`MAX_BODY`].
    #[error("the body has {0} bytes, too many")]
    TooLarge(usize),
    /// Deeper than [`MAX_DEPTH`].
    #[error("the body is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// More than [`MAX_MEMBERS`].
    #[error("the body has {0} top-level fields, too many")]
    TooManyMembers(usize),
    /// Not text.
    #[error("the body is not UTF-8")]
    NotUtf8(#[source] std::str::Utf8Error),
    /// Not JSON.
    #[error("the body is not valid JSON")]
    NotJson(#[source] serde_json::Error),
    /// JSON, but no object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// A field that decides how the request is served has another type.
    #[error("{field} is not {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A field that clients may not send.
    #[error("{0} is not allowed")]
    Forbidden(&'static str),
}

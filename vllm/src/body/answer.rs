//! A prefill engine's answer: the transfer parameters, strictly; anything else as far as it can be read.

use bytes::Bytes;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::BodyError;
use super::scan::{Scanned, scan};
use crate::openai::{EngineError, engine_error};
use crate::params::{KvTransferParams, ParamsError, RawParams, TokenIds, UnsupportedParams};

/// What a prefill said.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefillAnswer {
    /// Well-formed; whether kvgate can move what they name is [`KvTransferParams::check_supported`]'s question.
    pub params: KvTransferParams,
    /// The same as it came.
    pub raw_params: RawParams,
    /// The prompt's tokens, when asked for and given.
    pub prompt_token_ids: Option<TokenIds>,
    /// `usage.prompt_tokens`, when given.
    pub prompt_tokens: Option<u64>,
}

/// Why an answer leads to no transfer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Not a JSON object.
    #[error("the prefill engine's answer is not readable")]
    NotReadable(#[source] BodyError),
    /// An error object.
    #[error("the prefill engine reports an error")]
    Engine(#[source] EngineError),
    /// `kv_transfer_params` is null or absent: the prefill was aborted, or the engine has no NIXL connector.
    #[error("the prefill engine's answer has no kv_transfer_params")]
    NoParams,
    /// `kv_transfer_params` cannot be trusted.
    #[error("the prefill engine's kv_transfer_params is wrong")]
    Params(#[from] ParamsError),
    /// `kv_transfer_params` is well-formed, but for nothing that kvgate can move.
    #[error("the prefill engine's blocks cannot be moved")]
    Unsupported(#[from] UnsupportedParams),
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    prompt_token_ids: Option<&'a RawValue>,
}

/// Reads the answer of a prefill engine.
///
/// # Errors
/// [`AnswerError`].
pub fn prefill_answer(body: &Bytes) -> Result<PrefillAnswer, AnswerError> {
    let scanned = scan(body).map_err(AnswerError::NotReadable)?;
    if let Some(error) = scanned.get("error") {
        return Err(AnswerError::Engine(engine_error(error)));
    }
    let params = scanned.get("kv_transfer_params").ok_or(AnswerError::NoParams)?;
    Ok(PrefillAnswer {
        params: KvTransferParams::read(params)?,
        raw_params: RawParams::read(body.slice_ref(params.as_bytes())),
        prompt_token_ids: token_ids(body, &scanned),
        prompt_tokens: tolerant::<Usage>(&scanned, "usage").map(|usage| usage.prompt_tokens),
    })
}

/// Choices without it are not read.
const KEY: &[u8] = b"\"prompt_token_ids\"";

/// Chats have the ids at the top, completions in each choice.
fn token_ids(body: &Bytes, scanned: &Scanned<'_>) -> Option<TokenIds> {
    let read = |json: &str| TokenIds::read(body.slice_ref(json.as_bytes()));
    let in_choice = || {
        let choices = scanned.get("choices").filter(|choices| memmem::find(choices.as_bytes(), KEY).is_some())?;
        let first = serde_json::from_str::<Vec<Choice<'_>>>(choices).ok()?.into_iter().next()?;
        read(first.prompt_token_ids?.get())
    };
    scanned.get("prompt_token_ids").and_then(read).or_else(in_choice)
}

fn tolerant<'a, T: Deserialize<'a>>(scanned: &Scanned<'a>, field: &str) -> Option<T> {
    serde_json::from_str(scanned.get(field)?).ok()
}

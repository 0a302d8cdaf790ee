//! A request body, read and checked as far as the answer depends on it; everything else is accepted and ignored.

use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;
use vllm_wire::headers::REQUEST_ID;
use vllm_wire::params::KvTransferParams;

use super::Api;
use super::error::ApiError;
use super::prompt::{self, Prompt};
use crate::engine::KvRole;

/// Which of the two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

/// A checked request.
#[derive(Debug)]
pub(super) struct Call {
    /// Its form.
    pub endpoint: Endpoint,
    /// API id without the prompt's index: `cmpl-X` or `chatcmpl-X`.
    pub id: String,
    /// The model, as answered.
    pub model: String,
    /// When it came, seconds since 1970.
    pub created: u64,
    /// At least one; exactly one for a chat.
    pub prompts: Vec<Prompt>,
    /// Tokens to generate for each text, if limited.
    pub max_tokens: Option<u32>,
    /// The model's length in tokens.
    pub max_model_len: u64,
    /// Texts per prompt.
    pub n: u32,
    /// Answer as events.
    pub stream: bool,
    /// Close a stream with the usage.
    pub include_usage: bool,
    /// Begin each text with its prompt.
    pub echo: bool,
    /// Answer token ids too.
    pub return_token_ids: bool,
    /// What is to happen with the KV.
    pub kv: KvRole,
}

#[derive(Debug, Deserialize)]
struct Body {
    model: Option<String>,
    prompt: Option<Value>,
    messages: Option<Value>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    min_tokens: Option<u32>,
    n: Option<u32>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    echo: Option<bool>,
    return_token_ids: Option<bool>,
    request_id: Option<String>,
    kv_transfer_params: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// vLLM's default for completions.
const DEFAULT_MAX_TOKENS: u32 = 16;
/// More texts than this per prompt are refused.
const MAX_N: u32 = 128;

impl Call {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// What vLLM would answer: 400, or 404 for another model.
    pub(super) fn parse(endpoint: Endpoint, headers: &HeaderMap, bytes: &[u8], api: &Api) -> Result<Self, ApiError> {
        let body: Body = serde_json::from_slice(bytes)
            .map_err(|error| ApiError::bad_request(format!("invalid body: {error}"), None))?;
        if let Some(model) = body.model.as_ref().filter(|model| **model != api.model) {
            return Err(ApiError::unknown_model(model));
        }
        let stream = body.stream.unwrap_or(false);
        if body.stream_options.is_some() && !stream {
            let message = "Stream options can only be defined when `stream=True`.";
            return Err(ApiError::bad_request(message, Some("stream_options")));
        }
        let n = body.n.unwrap_or(1);
        if n == 0 || n > MAX_N {
            return Err(ApiError::bad_request(format!("n must be between 1 and {MAX_N}, got {n}."), Some("n")));
        }
        let (prompts, max_tokens) = match endpoint {
            Endpoint::Completions => {
                (prompt::of_completion(body.prompt.as_ref())?, Some(body.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)))
            }
            Endpoint::Chat => {
                let ids = body.kv_transfer_params.as_ref().and_then(|params| params.get("prompt_token_ids"));
                let prompt = match ids.filter(|ids| !ids.is_null()) {
                    Some(ids) => prompt::of_id_list(ids)?,
                    None => prompt::of_chat(body.messages.as_ref())?,
                };
                (vec![prompt], body.max_completion_tokens.or(body.max_tokens))
            }
        };
        check_lengths(&prompts, max_tokens, body.min_tokens, api.max_model_len)?;
        let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let name = given.or(body.request_id).unwrap_or_else(|| Uuid::new_v4().simple().to_string());
        let prefix = match endpoint {
            Endpoint::Completions => "cmpl",
            Endpoint::Chat => "chatcmpl",
        };
        Ok(Self {
            endpoint,
            id: format!("{prefix}-{name}"),
            model: api.model.clone(),
            created: crate::wall::unix_seconds(),
            prompts,
            max_tokens,
            max_model_len: api.max_model_len,
            n,
            stream,
            include_usage: body.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            echo: endpoint == Endpoint::Completions && body.echo.unwrap_or(false),
            return_token_ids: body.return_token_ids.unwrap_or(false),
            kv: kv_role(body.kv_transfer_params.as_ref())?,
        })
    }
}

fn check_lengths(
    prompts: &[Prompt],
    max_tokens: Option<u32>,
    min_tokens: Option<u32>,
    max_model_len: u64,
) -> Result<(), ApiError> {
    if max_tokens == Some(0) {
        return Err(ApiError::bad_request("max_tokens must be at least 1, got 0.", Some("max_tokens")));
    }
    if let (Some(min), Some(max)) = (min_tokens, max_tokens)
        && min > max
    {
        let message = format!("min_tokens must be less than or equal to max_tokens={max}, got {min}.");
        return Err(ApiError::bad_request(message, Some("min_tokens")));
    }
    for prompt in prompts {
        let tokens = u64::try_from(prompt.tokens.len()).unwrap_or(u64::MAX);
        let new = u64::from(max_tokens.unwrap_or(1));
        if tokens.saturating_add(new) > max_model_len {
            let message = format!(
                "This model's maximum context length is {max_model_len} tokens. However, you requested {new} output tokens \
                 and your prompt contains {tokens} input tokens."
            );
            return Err(ApiError::bad_request(message, Some("prompt")));
        }
    }
    Ok(())
}

/// vLLM takes the object unchecked, and dies or hangs of a bad one; here it is a refused request.
fn kv_role(params: Option<&Value>) -> Result<KvRole, ApiError> {
    let flag = |name: &str| params.and_then(|params| params.get(name)).and_then(Value::as_bool).unwrap_or(false);
    match params {
        Some(Value::Object(_)) | None | Some(Value::Null) => {}
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            return Err(ApiError::bad_request("kv_transfer_params must be an object", Some("kv_transfer_params")));
        }
    }
    if flag("do_remote_decode") {
        return Ok(KvRole::ForDecode);
    }
    match params {
        Some(params) if flag("do_remote_prefill") => {
            let refuse = |error: &dyn std::error::Error| {
                tracing::error!(%error, "kv_transfer_params that vLLM's engine would not survive");
                ApiError::bad_request(error.to_string(), Some("kv_transfer_params"))
            };
            let params = KvTransferParams::parse(params).map_err(|error| refuse(&error))?;
            params.check_supported().map_err(|error| refuse(&error))?;
            Ok(KvRole::FromPrefill(Box::new(params)))
        }
        Some(_) | None => Ok(KvRole::Plain),
    }
}

//! The whole answer of a call that does not stream, and the pieces that it shares with a stream.

use serde_json::{Map, Value, json};

use super::call::{Call, Endpoint};
use super::error::ApiError;
use super::generate::{Generation, Said};

#[derive(Clone, Debug, Default)]
struct Text {
    text: String,
    ids: Vec<u32>,
    finish: Option<&'static str>,
}

/// Waits for everything and puts it together.
///
/// # Errors
/// The first job that fails.
pub(super) async fn whole(call: &Call, mut generation: Generation) -> Result<Value, ApiError> {
    let count = call.prompts.len().saturating_mul(usize::try_from(call.n).unwrap_or(1));
    let mut texts = vec![Text::default(); count];
    let mut kv_transfer_params = Value::Null;
    loop {
        match generation.next(call.n).await? {
            Said::Token { index, token, finish } => {
                let text = usize::try_from(index).ok().and_then(|index| texts.get_mut(index));
                if let Some(text) = text {
                    text.text.push_str(token.text);
                    text.ids.push(token.id);
                    text.finish = finish;
                }
            }
            // Of several prompts vLLM answers only the first one's.
            Said::Done { prompt: 0, kv_transfer_params: Some(params) } => kv_transfer_params = params,
            Said::Done { .. } => {}
            Said::End => break,
        }
    }
    let generated = texts.iter().map(|text| text.ids.len()).sum();
    let choices: Vec<Value> = (0u32..).zip(&texts).map(|(index, text)| choice(call, index, text)).collect();
    let mut answer = head(call, false);
    answer.insert("choices".to_owned(), choices.into());
    answer.insert("usage".to_owned(), usage(call, generated));
    if call.endpoint == Endpoint::Chat {
        let ids = if call.return_token_ids { prompt_ids(call, 0) } else { Value::Null };
        answer.insert("prompt_token_ids".to_owned(), ids);
    }
    answer.insert("kv_transfer_params".to_owned(), kv_transfer_params);
    Ok(Value::Object(answer))
}

fn choice(call: &Call, index: u32, text: &Text) -> Value {
    let token_ids = if call.return_token_ids { json!(text.ids) } else { Value::Null };
    let common = json!({
        "index": index, "logprobs": null, "finish_reason": text.finish, "stop_reason": null, "token_ids": token_ids,
    });
    let mut choice = into_map(common);
    match call.endpoint {
        Endpoint::Completions => {
            let said = format!("{}{}", echoed(call, index), text.text);
            choice.insert("text".to_owned(), said.into());
            let ids = if call.return_token_ids { prompt_ids(call, index) } else { Value::Null };
            choice.insert("prompt_token_ids".to_owned(), ids);
        }
        Endpoint::Chat => {
            let message = json!({"role": "assistant", "content": text.text, "refusal": null, "tool_calls": []});
            choice.insert("message".to_owned(), message);
        }
    }
    Value::Object(choice)
}

/// The fields that every answer and every event begins with.
pub(super) fn head(call: &Call, chunk: bool) -> Map<String, Value> {
    let object = match (call.endpoint, chunk) {
        (Endpoint::Completions, _) => "text_completion",
        (Endpoint::Chat, false) => "chat.completion",
        (Endpoint::Chat, true) => "chat.completion.chunk",
    };
    into_map(json!({"id": call.id, "object": object, "created": call.created, "model": call.model}))
}

/// The usage object.
pub(super) fn usage(call: &Call, generated: usize) -> Value {
    let prompt: usize = call.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    json!({
        "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
        "prompt_tokens_details": null,
    })
}

/// What the text with this index begins with.
pub(super) fn echoed(call: &Call, index: u32) -> &str {
    match prompt_of(call, index) {
        Some(prompt) if call.echo => &prompt.text,
        Some(_) | None => "",
    }
}

/// The token ids of the prompt of the text with this index.
pub(super) fn prompt_ids(call: &Call, index: u32) -> Value {
    prompt_of(call, index).map_or(Value::Null, |prompt| json!(prompt.tokens))
}

fn prompt_of(call: &Call, index: u32) -> Option<&super::prompt::Prompt> {
    usize::try_from(index / call.n.max(1)).ok().and_then(|prompt| call.prompts.get(prompt))
}

pub(super) fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

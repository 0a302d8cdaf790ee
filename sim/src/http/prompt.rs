//! Prompts and chats as token ids: text is its bytes, ids are taken as they are.

use serde_json::Value;

use super::error::ApiError;

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prompt {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Its text, for `echo`.
    pub text: String,
}

/// The prompts of a completion: a text, ids, several texts, or several lists of ids.
///
/// # Errors
/// When it is none of these, or empty.
pub(super) fn of_completion(prompt: Option<&Value>) -> Result<Vec<Prompt>, ApiError> {
    let bad =
        || ApiError::bad_request("prompt must be a string, an array of tokens, or an array of those", Some("prompt"));
    let prompts = match prompt {
        Some(Value::String(text)) => vec![of_text(text)],
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => vec![of_ids(items)?],
        Some(Value::Array(items)) => {
            let one = |item: &Value| match item {
                Value::String(text) => Ok(of_text(text)),
                Value::Array(ids) => of_ids(ids),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(bad()),
            };
            items.iter().map(one).collect::<Result<_, _>>()?
        }
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => return Err(bad()),
    };
    if prompts.is_empty() || prompts.iter().any(|prompt| prompt.tokens.is_empty()) {
        return Err(ApiError::bad_request("The decoder prompt cannot be empty", Some("prompt")));
    }
    Ok(prompts)
}

/// A chat through a simple template; other than text content counts by its JSON.
///
/// # Errors
/// When `messages` is not a non-empty list of messages.
pub(super) fn of_chat(messages: Option<&Value>) -> Result<Prompt, ApiError> {
    let bad = |message: &str| ApiError::bad_request(message, Some("messages"));
    let Some(Value::Array(messages)) = messages else { return Err(bad("messages must be an array")) };
    if messages.is_empty() {
        return Err(bad("messages must not be empty"));
    }
    let mut text = String::new();
    for message in messages {
        let role = message.get("role").and_then(Value::as_str).ok_or_else(|| bad("a message needs a role"))?;
        text.push_str(&format!("<|{role}|>\n"));
        match message.get("content") {
            Some(Value::String(content)) => text.push_str(content),
            Some(Value::Array(parts)) => parts.iter().for_each(|part| match part.get("text").and_then(Value::as_str) {
                Some(part) => text.push_str(part),
                None => text.push_str(&part.to_string()),
            }),
            Some(Value::Null) | None => {}
            Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                return Err(bad("a message's content must be a string or an array"));
            }
        }
        text.push('\n');
    }
    text.push_str("<|assistant|>\n");
    Ok(of_text(&text))
}

/// Token ids that a prefill has already made of the same prompt.
///
/// # Errors
/// When they are no list of ids.
pub(super) fn of_id_list(ids: &Value) -> Result<Prompt, ApiError> {
    let Value::Array(ids) = ids else {
        return Err(ApiError::bad_request("prompt_token_ids must be an array", Some("kv_transfer_params")));
    };
    of_ids(ids)
}

fn of_text(text: &str) -> Prompt {
    Prompt { tokens: text.bytes().map(u32::from).collect(), text: text.to_owned() }
}

fn of_ids(ids: &[Value]) -> Result<Prompt, ApiError> {
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let tokens: Option<Vec<u32>> = ids.iter().map(id).collect();
    let tokens =
        tokens.ok_or_else(|| ApiError::bad_request("a token id must be a number of 32 bits", Some("prompt")))?;
    let bytes: Vec<u8> = tokens.iter().filter_map(|token| u8::try_from(*token).ok()).collect();
    Ok(Prompt { text: String::from_utf8_lossy(&bytes).into_owned(), tokens })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_form_of_a_prompt_is_understood() {
        let tokens = |value: Value| {
            of_completion(Some(&value))
                .map(|prompts| prompts.into_iter().map(|prompt| prompt.tokens).collect::<Vec<_>>())
        };
        assert_eq!(tokens(json!("ab")).unwrap(), [[97, 98]]);
        assert_eq!(tokens(json!([97, 98])).unwrap(), [[97, 98]]);
        assert_eq!(tokens(json!(["a", "b"])).unwrap(), [[97], [98]]);
        assert_eq!(tokens(json!([[1], [2]])).unwrap(), [[1], [2]]);
        for bad in
            [json!(null), json!(""), json!([]), json!([""]), json!([1, "a"]), json!([-1]), json!([5e9]), json!({})]
        {
            assert!(tokens(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_chat_ends_where_the_assistant_speaks() {
        let messages = json!([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]);
        assert_eq!(of_chat(Some(&messages)).unwrap().text, "<|user|>\nhi\n<|assistant|>\n");
        for bad in [json!([]), json!("x"), json!([{"content": "x"}]), json!([{"role": "user", "content": 5}])] {
            assert!(of_chat(Some(&bad)).is_err(), "{bad}");
        }
    }
}

//! Several prompts of one completions request, answered each by itself, as the one answer that vLLM would have given.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::BodyError;
use super::edit::{self, Edit};
use super::scan::{Scanned, scan};

/// An answer to one prompt, or one chunk of a streamed one, as part of the answer to all.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptPart {
    /// The whole part, its choices numbered among all prompts'.
    pub body: Vec<u8>,
    /// The answer's id as it is written, quotes included.
    pub id: Option<String>,
    /// Whether it has choices: a stream's last chunk may have none, and the usage of all before it.
    pub has_choices: bool,
    /// Tokens spent.
    pub usage: Option<Value>,
}

/// Reads the answer (or the chunk) to prompt number `prompt`, of which each has one choice. `id` is the answer's id as it is
/// written, in place of the part's own.
///
/// # Errors
/// [`BodyError`] for a part that is no completion.
pub fn prompt_part(part: &[u8], prompt: usize, id: Option<&str>) -> Result<PromptPart, BodyError> {
    let scanned = scan(part)?;
    let choices = numbered_choices(&scanned, prompt)?;
    let mut edits = only_for_one(&choices);
    if let Some(id) = id {
        edits.push(("id", Edit::Replace(id.into())));
    }
    Ok(PromptPart {
        body: edited(part, &scanned, &edits),
        id: scanned.get("id").map(str::to_owned),
        has_choices: !choices.is_empty(),
        usage: scanned.get("usage").map(|usage| read(usage, "usage")).transpose()?,
    })
}

/// The answers to all prompts (none of them streamed), in their order, as one: the first one with all choices and all usage.
///
/// # Errors
/// [`BodyError`] for an answer that is no completion.
pub fn merged_answer(answers: &[Bytes]) -> Result<Vec<u8>, BodyError> {
    let (mut choices, mut usage) = (Vec::new(), Vec::new());
    for (prompt, answer) in answers.iter().enumerate() {
        let scanned = scan(answer)?;
        choices.extend(numbered_choices(&scanned, prompt)?);
        usage.extend(scanned.get("usage").map(|usage| read(usage, "usage")).transpose()?);
    }
    let first = answers.first().map_or(&b"{}"[..], |first| first);
    with_usage(first, &choices, &usage)
}

/// A stream's last chunk, of any prompt, as that of all.
///
/// # Errors
/// [`BodyError`] for a chunk that is none.
pub fn merged_usage_chunk(chunk: &[u8], usage: &[Value]) -> Result<Vec<u8>, BodyError> {
    with_usage(chunk, &[], usage)
}

fn with_usage(part: &[u8], choices: &[String], usage: &[Value]) -> Result<Vec<u8>, BodyError> {
    let scanned = scan(part)?;
    let mut edits = only_for_one(choices);
    let sum = usage.iter().fold(Value::Null, sum);
    if !sum.is_null() {
        edits.push(("usage", Edit::Replace(sum.to_string().into())));
    }
    Ok(edited(part, &scanned, &edits))
}

/// vLLM gives neither parameters nor metrics with the answer to several prompts.
fn only_for_one<'a>(choices: &[String]) -> Vec<(&'static str, Edit<'a>)> {
    let choices = Cow::Owned(format!("[{}]", choices.join(",")));
    vec![("choices", Edit::Replace(choices)), ("kv_transfer_params", Edit::Remove), ("metrics", Edit::Remove)]
}

fn numbered_choices(scanned: &Scanned<'_>, prompt: usize) -> Result<Vec<String>, BodyError> {
    let choices = scanned.get("choices").ok_or(BodyError::Field { field: "choices", expected: "there" })?;
    let choices: Vec<&RawValue> =
        serde_json::from_str(choices).map_err(|_| BodyError::Field { field: "choices", expected: "a list" })?;
    let numbered = choices.into_iter().map(|choice| {
        let choice = choice.get();
        let edits = [("index", Edit::Set(prompt.to_string().into()))];
        Ok(String::from_utf8_lossy(&edited(choice.as_bytes(), &scan(choice.as_bytes())?, &edits)).into_owned())
    });
    numbered.collect()
}

fn edited(part: &[u8], scanned: &Scanned<'_>, edits: &[(&str, Edit<'_>)]) -> Vec<u8> {
    edit::edited(&Bytes::copy_from_slice(part), &scanned.layout, &[edits]).concat().into()
}

fn read(json: &str, field: &'static str) -> Result<Value, BodyError> {
    serde_json::from_str(json).map_err(|_| BodyError::Field { field, expected: "readable" })
}

/// Adds numbers up, field by field; of anything else the last word counts.
fn sum(total: Value, more: &Value) -> Value {
    match (total, more) {
        (Value::Object(mut total), Value::Object(more)) => {
            for (field, value) in more {
                let before = total.get_mut(field).map(Value::take).unwrap_or_default();
                total.insert(field.clone(), sum(before, value));
            }
            Value::Object(total)
        }
        (Value::Null, Value::Object(more)) => sum(Value::Object(Map::new()), &Value::Object(more.clone())),
        (Value::Number(total), Value::Number(more)) => match (total.as_u64(), more.as_u64()) {
            (Some(total), Some(more)) => total.saturating_add(more).into(),
            _ => more.clone().into(),
        },
        (total, Value::Null) => total,
        (_, more) => more.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_one() {
        let answers = [
            r#"{"id":"a", "choices":[{"index":0,"text":"x","p":0.10}],"usage":{"prompt_tokens":3,"completion_tokens":1,"prompt_tokens_details":null},"metrics":{}}"#,
            r#"{"id":"b","choices":[{"text":"y", "index" : 0}],"kv_transfer_params":{},"usage":{"prompt_tokens":4,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":5}}}"#,
        ]
        .map(Bytes::from);
        assert_eq!(
            String::from_utf8(merged_answer(&answers).unwrap()).unwrap(),
            r#"{"id":"a", "choices":[{"index":0,"text":"x","p":0.10},{"text":"y", "index" : 1}],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5}}}"#
        );
        assert!(merged_answer(&[Bytes::from("{}")]).is_err());
        assert!(merged_answer(&[Bytes::from(r#"{"choices":7}"#)]).is_err());
    }

    #[test]
    fn a_chunk_is_numbered_and_named_after_the_whole() {
        let part = prompt_part(br#"{"id":"b","choices":[{"text":"y"}],"usage":null}"#, 3, Some("\"a\"")).unwrap();
        assert_eq!(
            String::from_utf8(part.body).unwrap(),
            r#"{"id":"a","choices":[{"text":"y","index":3}],"usage":null}"#
        );
        assert_eq!((part.id.as_deref(), part.has_choices, part.usage), (Some("\"b\""), true, None));
        let last = prompt_part(br#"{"id":"b","choices":[],"usage":{"total_tokens":9}}"#, 3, None).unwrap();
        assert!(!last.has_choices);
        let usage = [last.usage.unwrap(), serde_json::json!({"total_tokens": 1})];
        let merged = merged_usage_chunk(&last.body, &usage).unwrap();
        assert_eq!(String::from_utf8(merged).unwrap(), r#"{"id":"b","choices":[],"usage":{"total_tokens":10}}"#);
    }
}

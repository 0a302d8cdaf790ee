//! Errors in OpenAI's form: written for clients, recognised in an engine's answers (protocol doc §3.6).

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::json;

/// The longest error message that is kept of an engine, in characters.
const MAX_MESSAGE: usize = 2048;

/// An error that an engine reported in its body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} ({code}): {message}")]
pub struct EngineError {
    /// Its words.
    pub message: String,
    /// Its `type`, e.g. `InternalServerError`.
    pub kind: String,
    /// Its `code`, a status number in vLLM.
    pub code: String,
}

/// An error body for a client: `{"error":{"message":…,"type":…,"param":null,"code":…}}`.
pub fn error_body(message: &str, kind: &str, code: u16) -> String {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}}).to_string()
}

/// The same as one event of a stream, followed by the end of the stream.
pub fn error_events(message: &str, kind: &str, code: u16) -> String {
    format!("data: {}\n\ndata: [DONE]\n\n", error_body(message, kind, code))
}

/// The error in a body, if it is one.
pub fn error_in(body: &[u8]) -> Option<EngineError> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        error: Option<&'a serde_json::value::RawValue>,
    }
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    body.error.map(|error| engine_error(error.get()))
}

/// Whether one server-sent event (everything up to its empty line) is vLLM's `data: {"error": …}`.
pub fn is_error_event(event: &[u8]) -> bool {
    error_in_event(event).is_some()
}

/// The error in one server-sent event, if it is one.
pub fn error_in_event(event: &[u8]) -> Option<EngineError> {
    error_in(&event_data(event))
}

/// What one server-sent event carries; empty for a comment.
pub fn event_data(event: &[u8]) -> Vec<u8> {
    let lines = event.split(|byte| matches!(byte, b'\n' | b'\r'));
    let data: Vec<&[u8]> = lines.filter_map(|line| line.strip_prefix(b"data:")).collect();
    data.join(&b'\n').trim_ascii().to_vec()
}

/// Whether what an event carries only announces a response: vLLM sends these two before its engine has begun (0.32's
/// `entrypoints/openai/responses/serving.py`), so they say nothing of whether a decode works.
pub fn is_announcement(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
    }
    let event = serde_json::from_slice::<Event<'_>>(data);
    event.is_ok_and(|event| matches!(&*event.kind, "response.created" | "response.in_progress"))
}

/// Reads an error object or string as far as it can be read.
pub(crate) fn engine_error(json: &str) -> EngineError {
    let value: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let text = |field: &str| match value.get(field) {
        Some(serde_json::Value::String(text)) => text.chars().take(MAX_MESSAGE).collect(),
        Some(serde_json::Value::Number(number)) => number.to_string(),
        Some(_) | None => String::new(),
    };
    let message = value.as_str().map_or_else(|| text("message"), |text| text.chars().take(MAX_MESSAGE).collect());
    EngineError { message, kind: text("type"), code: text("code") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_errors_are_openais() {
        let body = error_body("no \"rank\"", "service_unavailable", 503);
        let expected = r#"{"error":{"message":"no \"rank\"","type":"service_unavailable","param":null,"code":503}}"#;
        assert_eq!(body, expected);
        let error = error_in(body.as_bytes()).unwrap();
        assert_eq!(error.to_string(), "service_unavailable (503): no \"rank\"");
        let events = error_events("m", "t", 500);
        let (first, rest) = events.split_at(events.find("\n\n").unwrap() + 2);
        assert!(is_error_event(first.as_bytes()));
        assert_eq!(rest, "data: [DONE]\n\n");
    }

    #[test]
    fn an_error_event_is_told_from_text_that_speaks_of_one() {
        for event in [
            "data: {\"error\":{\"message\":\"Internal server error\",\"type\":\"InternalServerError\",\"code\":500}}\n\n",
            "data:{\"error\":\"x\"}\r\n\r\n",
            "event: message\ndata: {\"error\":\ndata: {}}\n\n",
            "data: {\"\\u0065rror\":{}}\n\n",
        ] {
            assert!(is_error_event(event.as_bytes()), "{event}");
        }
        for event in [
            "data: {\"choices\":[{\"text\":\"{\\\"error\\\":1}\"}]}\n\n",
            "data: {\"error\":null,\"choices\":[]}\n\n",
            "data: [DONE]\n\n",
            ": error\n\n",
            "",
            "data: {\"error\"",
        ] {
            assert!(!is_error_event(event.as_bytes()), "{event}");
        }
    }

    #[test]
    fn an_announced_response_is_told_from_one_that_has_begun() {
        assert!(is_announcement(br#"{"response":{"type":"x"},"type":"response.created"}"#));
        assert!(is_announcement(br#"{"type":"response.in\u005fprogress"}"#));
        for begun in [&br#"{"type":"response.output_text.delta","delta":"response.created"}"#[..], b"[DONE]", b"{}"] {
            assert!(!is_announcement(begun));
        }
    }
}

//! Errors as clients see them: in the form of the API that they speak, with a stable `code`, the request's id, words without addresses.

use std::borrow::Cow;

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use vllm_wire::body::Endpoint;

use crate::admission::Refused;
use crate::metrics::Outcome;

/// When to come back, where nobody knows better, in seconds.
const RETRY_AFTER: u32 = 1;

/// The longest words that are kept of another's error, in bytes.
const MAX_DETAIL: usize = 1024;

/// Another's words, no longer than can be kept for thousands of requests.
pub(crate) fn cut_short(mut words: String) -> String {
    if words.len() > MAX_DETAIL {
        let end = (0..=MAX_DETAIL).rev().find(|end| words.is_char_boundary(*end));
        words.truncate(end.unwrap_or(0));
    }
    words
}

/// Whose API a client speaks, and so in which form it reads errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
}

impl Dialect {
    /// The form for whoever asked this path: `/v1/messages` and what is below it are Anthropic's.
    pub(crate) fn of(path: &str) -> Self {
        let rest = path.strip_prefix(Endpoint::Messages.path());
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) { Self::Anthropic } else { Self::OpenAi }
    }
}

/// One error for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: String,
    pub(crate) outcome: Outcome,
    /// When to come back, in seconds; sent with 429 and 503.
    pub(crate) retry_after: u32,
}

impl ApiError {
    /// Any error.
    pub(crate) fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
        outcome: Outcome,
    ) -> Self {
        Self { status, code: code.into(), message: message.into(), outcome, retry_after: RETRY_AFTER }
    }

    /// The client's own mistake.
    pub(crate) fn client(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, code, message, Outcome::ClientError)
    }

    /// No rank for it just now.
    pub(crate) fn not_ready(message: String) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message, Outcome::NotReady)
    }

    /// The word that clients of this API know it by.
    fn kind(&self, dialect: Dialect) -> &'static str {
        match (dialect, self.status) {
            (_, StatusCode::TOO_MANY_REQUESTS) => "rate_limit_error",
            (Dialect::OpenAi, StatusCode::SERVICE_UNAVAILABLE) => "service_unavailable",
            (Dialect::OpenAi, status) if status.is_client_error() => "invalid_request_error",
            (Dialect::OpenAi, _) => "server_error",
            (Dialect::Anthropic, StatusCode::UNAUTHORIZED) => "authentication_error",
            (Dialect::Anthropic, StatusCode::FORBIDDEN) => "permission_error",
            (Dialect::Anthropic, StatusCode::NOT_FOUND) => "not_found_error",
            (Dialect::Anthropic, StatusCode::PAYLOAD_TOO_LARGE) => "request_too_large",
            (Dialect::Anthropic, StatusCode::SERVICE_UNAVAILABLE) => "overloaded_error",
            (Dialect::Anthropic, StatusCode::GATEWAY_TIMEOUT) => "timeout_error",
            (Dialect::Anthropic, status) if status.is_client_error() => "invalid_request_error",
            (Dialect::Anthropic, _) => "api_error",
        }
    }

    fn body(&self, dialect: Dialect, request_id: Option<&str>) -> String {
        let kind = self.kind(dialect);
        let (mut body, holder) = match dialect {
            Dialect::OpenAi => (
                json!({ "error": { "message": self.message, "type": kind, "param": null, "code": self.code } }),
                "/error",
            ),
            Dialect::Anthropic => {
                (json!({ "type": "error", "error": { "type": kind, "message": self.message, "code": self.code } }), "")
            }
        };
        if let (Some(id), Some(holder)) = (request_id, body.pointer_mut(holder).and_then(Value::as_object_mut)) {
            holder.insert("request_id".to_owned(), id.into());
        }
        body.to_string()
    }

    /// The last event of a stream that breaks off.
    pub(crate) fn event(&self, dialect: Dialect, request_id: &str) -> String {
        let name = match dialect {
            Dialect::OpenAi => "",
            Dialect::Anthropic => "event: error\n",
        };
        format!("{name}data: {}\n\n", self.body(dialect, Some(request_id)))
    }

    /// The answer to a request that has an id.
    pub(crate) fn answer(&self, dialect: Dialect, request_id: &str) -> Response<Body> {
        self.response(dialect, Some(request_id))
    }

    /// The answer on a path of the router's own.
    pub(crate) fn into_response(self) -> Response<Body> {
        self.response(Dialect::OpenAi, None)
    }

    /// The answer to a request that has no id, or none yet.
    pub(crate) fn response_in(&self, dialect: Dialect) -> Response<Body> {
        self.response(dialect, None)
    }

    fn response(&self, dialect: Dialect, request_id: Option<&str>) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body(dialect, request_id)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after));
        }
        response
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let (status, code) = match refused {
            Refused::Full => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Refused::Late => (StatusCode::TOO_MANY_REQUESTS, "queue_timeout"),
            Refused::NoMemory => (StatusCode::TOO_MANY_REQUESTS, "memory_full"),
            Refused::TooFast(_) => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Refused::KeyBusy => (StatusCode::TOO_MANY_REQUESTS, "concurrency_limit"),
            Refused::Draining => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        let mut error = Self::new(status, code, refused.to_string(), Outcome::Rejected);
        if let Refused::TooFast(seconds) = refused {
            error.retry_after = seconds;
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_whose_form_is_read() {
        for (path, dialect) in [
            ("/v1/messages", Dialect::Anthropic),
            ("/v1/messages/count_tokens", Dialect::Anthropic),
            ("/v1/messages2", Dialect::OpenAi),
            ("/v1/chat/completions", Dialect::OpenAi),
            ("/", Dialect::OpenAi),
        ] {
            assert_eq!(Dialect::of(path), dialect, "{path}");
        }
    }

    #[test]
    fn each_form_has_its_own_words() {
        let error = ApiError::not_ready("m".to_owned());
        assert_eq!(
            error.body(Dialect::OpenAi, Some("r")),
            r#"{"error":{"message":"m","type":"service_unavailable","param":null,"code":"not_ready","request_id":"r"}}"#
        );
        assert_eq!(
            error.body(Dialect::Anthropic, Some("r")),
            r#"{"type":"error","error":{"type":"overloaded_error","message":"m","code":"not_ready"},"request_id":"r"}"#
        );
        assert!(error.event(Dialect::Anthropic, "r").starts_with("event: error\ndata: {"));
        assert!(error.event(Dialect::OpenAi, "r").starts_with("data: {"));
        for (status, kind) in [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (403, "permission_error"),
            (404, "not_found_error"),
            (408, "invalid_request_error"),
            (413, "request_too_large"),
            (429, "rate_limit_error"),
            (502, "api_error"),
            (503, "overloaded_error"),
            (504, "timeout_error"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(ApiError::client(status, "c", "m").kind(Dialect::Anthropic), kind);
        }
    }
}

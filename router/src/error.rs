//! Errors as clients see them: OpenAI's form, a stable `code`, the request's id, words without addresses.

use std::borrow::Cow;

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

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

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    fn body(&self, request_id: Option<&str>) -> String {
        let mut error = json!({"message": self.message, "type": self.kind(), "param": null, "code": self.code});
        if let (Some(id), Some(error)) = (request_id, error.as_object_mut()) {
            error.insert("request_id".to_owned(), id.into());
        }
        json!({ "error": error }).to_string()
    }

    /// The last event of a stream that breaks off.
    pub(crate) fn event(&self, request_id: &str) -> String {
        format!("data: {}\n\n", self.body(Some(request_id)))
    }

    /// The answer to a request that has an id.
    pub(crate) fn answer(&self, request_id: &str) -> Response<Body> {
        self.response(Some(request_id))
    }

    /// The answer.
    pub(crate) fn into_response(self) -> Response<Body> {
        self.response(None)
    }

    fn response(&self, request_id: Option<&str>) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body(request_id)));
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

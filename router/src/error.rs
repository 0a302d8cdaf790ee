//! Errors as clients see them: OpenAI's form, a stable `code`, words without addresses.

use std::borrow::Cow;

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::admission::Refused;
use crate::metrics::Outcome;

/// One error for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: String,
    pub(crate) outcome: Outcome,
}

impl ApiError {
    /// The client's own mistake.
    pub(crate) fn client(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), outcome: Outcome::ClientError }
    }

    /// No rank for it just now.
    pub(crate) fn not_ready(message: String) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, code: "not_ready".into(), message, outcome: Outcome::NotReady }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The answer.
    pub(crate) fn into_response(self) -> Response<Body> {
        let error = json!({"error": {"message": self.message, "type": self.kind(), "param": null, "code": self.code}});
        let mut response = Response::new(Body::from(error.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
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
            Refused::Draining => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        Self { status, code: code.into(), message: refused.to_string(), outcome: Outcome::Rejected }
    }
}

//! Errors in vLLM's form: `{"error": {"message", "type", "param", "code"}}`.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

use crate::engine::JobError;

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub struct ApiError {
    /// HTTP status, unless a stream has begun.
    pub status: StatusCode,
    /// vLLM's name of the kind.
    pub kind: &'static str,
    /// For the client.
    pub message: String,
    /// The field that is wrong.
    pub param: Option<&'static str>,
}

impl ApiError {
    /// A request that cannot be served as it is.
    pub fn bad_request(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "BadRequestError", message: message.into(), param }
    }

    /// A model that is not served here.
    pub fn unknown_model(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist.");
        Self { status: StatusCode::NOT_FOUND, kind: "NotFoundError", message, param: Some("model") }
    }

    /// The body.
    pub fn to_json(&self) -> Value {
        let code = self.status.as_u16();
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": code}})
    }
}

impl From<JobError> for ApiError {
    /// vLLM tells a client nothing about a failed load; the log does.
    fn from(error: JobError) -> Self {
        let internal = |status, kind, message: &str| Self { status, kind, message: message.to_owned(), param: None };
        match error {
            JobError::Load(_) | JobError::Compute | JobError::Aborted => {
                internal(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", "Internal server error")
            }
            JobError::Refused => {
                let message = "The engine takes no more requests.";
                internal(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError", message)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, axum::Json(self.to_json())).into_response()
    }
}

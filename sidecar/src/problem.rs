//! Errors as RFC 9457 problem documents: a stable `code`, and `retry`, what the caller may do about it.
//!
//! The codes of design.md §6 come from [`Code`]; [`Kind`] adds the few that only HTTP itself can produce.

use std::error::Error;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::model::{Code, HandleError, Retry, TransferError};

/// The media type of problem documents.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// How long a client that is told "not now" should wait at least.
const RETRY_AFTER_SECONDS: &str = "1";

/// What goes wrong: one stable code each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of the codes of the design.
    Of(Code),
    /// The path is known, the method is not for it.
    MethodNotAllowed,
    /// The body is not declared to be JSON.
    UnsupportedMediaType,
    /// The body did not come in time.
    RequestTimeout,
    /// The bodies of requests take as much memory as they may.
    TooManyBodies,
    /// As many connections are open as may be.
    TooManyConnections,
    /// An agent thread is dead or stuck: only a restart of the process helps.
    NotAlive,
    /// Somebody still needs the pod's engine.
    EngineInUse,
    /// A defect of ours; the log has the facts.
    Internal,
}

impl Kind {
    fn facts(self) -> (&'static str, StatusCode, Retry, &'static str) {
        match self {
            Self::Of(code) => {
                let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (code.as_str(), status, code.retry(), title(code))
            }
            Self::MethodNotAllowed => {
                ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, Retry::Never, "The method is not allowed")
            }
            Self::UnsupportedMediaType => {
                ("unsupported_media_type", StatusCode::UNSUPPORTED_MEDIA_TYPE, Retry::Never, "The body must be JSON")
            }
            Self::RequestTimeout => {
                ("request_timeout", StatusCode::REQUEST_TIMEOUT, Retry::SameTarget, "The request took too long")
            }
            Self::TooManyBodies => {
                let title = "The sidecar holds as many request bodies as it may";
                ("too_many_bodies", StatusCode::TOO_MANY_REQUESTS, Retry::OtherTarget, title)
            }
            Self::TooManyConnections => {
                let title = "The sidecar has too many connections";
                ("too_many_connections", StatusCode::SERVICE_UNAVAILABLE, Retry::OtherTarget, title)
            }
            Self::NotAlive => {
                ("not_alive", StatusCode::SERVICE_UNAVAILABLE, Retry::OtherTarget, "The sidecar is not alive")
            }
            Self::EngineInUse => {
                ("engine_in_use", StatusCode::SERVICE_UNAVAILABLE, Retry::SameTarget, "The engine is in use")
            }
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, Retry::OtherTarget, "Internal error"),
        }
    }

    /// The stable code.
    pub fn code(self) -> &'static str {
        self.facts().0
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        self.facts().1
    }

    /// What the caller may do.
    pub fn retry(self) -> Retry {
        self.facts().2
    }

    /// In words, without the facts of the case.
    pub fn title(self) -> &'static str {
        self.facts().3
    }
}

impl From<Code> for Kind {
    fn from(code: Code) -> Self {
        Self::Of(code)
    }
}

/// One error as a client sees it.
#[derive(Clone, Debug)]
pub struct Problem(Box<Facts>);

#[derive(Clone, Debug)]
struct Facts {
    kind: Kind,
    detail: String,
    headers: Vec<(header::HeaderName, &'static str)>,
    extensions: Map<String, Value>,
}

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
pub(crate) struct Document<'a> {
    /// `urn:kvgate:problem:` and the code
    r#type: String,
    /// The same for every problem of this code
    title: &'a str,
    status: u16,
    /// Stable
    code: &'a str,
    /// What happened this time
    detail: &'a str,
    /// What a router may do: `never` (the same would happen again), `same_target`, `other_target` or `new_prefill`
    retry: &'a str,
    #[serde(flatten)]
    #[schema(ignore)]
    extensions: &'a Map<String, Value>,
}

impl Problem {
    /// One of the codes of the design.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let problem = Self::made(code.into(), detail.into());
        if code == Code::Unauthorized {
            problem.header(header::WWW_AUTHENTICATE, "Bearer")
        } else if matches!(code, Code::StagingFull | Code::RankNotReady | Code::ShuttingDown) {
            problem.header(header::RETRY_AFTER, RETRY_AFTER_SECONDS)
        } else {
            problem
        }
    }

    /// A field of the request is wrong: `field` names it, `what` says how.
    pub(crate) fn field(field: &str, what: &str) -> Self {
        Self::new(Code::ParamsInvalid, format!("{field}: {what}"))
    }

    pub(crate) fn method_not_allowed(method: &http::Method) -> Self {
        Self::made(Kind::MethodNotAllowed, format!("{method} is not for this path, see the Allow header"))
    }

    pub(crate) fn unsupported_media_type() -> Self {
        Self::made(Kind::UnsupportedMediaType, "send the body with Content-Type: application/json".to_owned())
    }

    pub(crate) fn request_timeout() -> Self {
        Self::made(Kind::RequestTimeout, "the request body did not arrive in time".to_owned())
    }

    pub(crate) fn too_many_bodies() -> Self {
        let detail = "the bodies of other requests take all the memory that there is for them".to_owned();
        Self::made(Kind::TooManyBodies, detail).header(header::RETRY_AFTER, RETRY_AFTER_SECONDS)
    }

    pub(crate) fn too_many_connections() -> Self {
        let detail = "as many connections are open as --max-connections allows; this one is closed".to_owned();
        Self::made(Kind::TooManyConnections, detail).header(header::RETRY_AFTER, RETRY_AFTER_SECONDS)
    }

    pub(crate) fn not_alive() -> Self {
        Self::made(Kind::NotAlive, "a NIXL agent thread is dead or stuck: restart the sidecar".to_owned())
    }

    pub(crate) fn engine_in_use() -> Self {
        let detail = "the engine runs requests, or keeps blocks that somebody is to read; see ranks".to_owned();
        Self::made(Kind::EngineInUse, detail).header(header::RETRY_AFTER, RETRY_AFTER_SECONDS)
    }

    pub(crate) fn internal() -> Self {
        Self::made(Kind::Internal, "the sidecar failed to answer; its log says why".to_owned())
    }

    /// Adds a member of this problem's own.
    pub(crate) fn with(mut self, member: &str, value: Value) -> Self {
        self.0.extensions.insert(member.to_owned(), value);
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.0.kind.status()
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.0.kind.code()
    }

    /// What the caller may do.
    pub fn retry(&self) -> Retry {
        self.0.kind.retry()
    }

    fn header(mut self, name: header::HeaderName, value: &'static str) -> Self {
        self.0.headers.push((name, value));
        self
    }

    fn made(kind: Kind, detail: String) -> Self {
        Self(Box::new(Facts { kind, detail, headers: Vec::new(), extensions: Map::new() }))
    }
}

impl From<&TransferError> for Problem {
    fn from(error: &TransferError) -> Self {
        Self::new(error.code(), with_causes(error))
    }
}

impl From<&HandleError> for Problem {
    fn from(error: &HandleError) -> Self {
        Self::new(error.code(), with_causes(error))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Facts { kind, detail, headers, extensions } = *self.0;
        let (code, status, retry, title) = kind.facts();
        let document = Document {
            r#type: format!("urn:kvgate:problem:{code}"),
            title,
            status: status.as_u16(),
            code,
            detail: &detail,
            retry: retry.as_str(),
            extensions: &extensions,
        };
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
        for (name, value) in headers {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// An error and its causes in one line, outermost first; a cause that its effect already quotes is not said twice.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

fn title(code: Code) -> &'static str {
    match code {
        Code::ParamsInvalid => "The request cannot be used as it is",
        Code::TooLarge => "The request is too large",
        Code::Unauthorized => "A valid bearer token is needed",
        Code::NotFound => "There is no such thing",
        Code::AttemptConflict => "The attempt id belongs to another transfer",
        Code::Cancelled => "The transfer has been given up",
        Code::RankUnknown => "This pod does not own the DP rank",
        Code::RequestExceedsStaging => "The request is larger than the staging arena",
        Code::RankNotReady => "The DP rank is not ready",
        Code::ShuttingDown => "The sidecar is shutting down",
        Code::StagingFull => "No staging became free in time",
        Code::PeerNotAllowed => "The request names a peer that this sidecar must not connect to",
        Code::PeerUnreachable => "The prefill engine cannot be reached",
        Code::PeerChanged => "The prefill engine is no longer the one that holds the blocks",
        Code::LeaseExpired => "The lease on the prefill engine's blocks is over",
        Code::DigestMismatch => "What landed is not what was sent",
        Code::TransferFailed => "The transfer failed",
        Code::Deadline => "The transfer did not end in time",
        Code::LayoutMismatch => "The two engines' KV caches do not match",
        Code::VersionUnsupported => "The engine's version is not supported",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    /// The table of design.md §6, as clients see it.
    const TABLE: &str = "\
params_invalid 400 never
too_large 413 never
unauthorized 401 never
not_found 404 never
attempt_conflict 409 never
cancelled 409 never
rank_unknown 404 other_target
request_exceeds_staging 413 other_target
rank_not_ready 503 other_target
shutting_down 503 other_target
staging_full 429 other_target
peer_not_allowed 403 new_prefill
peer_unreachable 502 new_prefill
peer_changed 502 new_prefill
lease_expired 409 new_prefill
digest_mismatch 409 new_prefill
transfer_failed 502 same_target
deadline 504 other_target
layout_mismatch 422 other_target
version_unsupported 422 other_target
";

    #[test]
    fn every_code_has_the_status_and_the_retry_of_the_design() {
        let mut table = String::new();
        for code in Code::ALL {
            let problem = Problem::new(code, "");
            writeln!(table, "{} {} {}", problem.code(), problem.status().as_u16(), problem.retry().as_str()).unwrap();
        }
        assert_eq!(table, TABLE);
    }

    #[tokio::test]
    async fn a_problem_is_a_document_with_everything_in_it() {
        let problem = Problem::new(Code::StagingFull, "no 4 blocks").with("ranks", Value::from(vec![1]));
        let response = problem.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["content-type"], MEDIA_TYPE);
        assert_eq!(response.headers()["retry-after"], "1");
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            r#"{"type":"urn:kvgate:problem:staging_full","title":"No staging became free in time","status":429,"code":"staging_full","detail":"no 4 blocks","retry":"other_target","ranks":[1]}"#
        );
    }

    #[test]
    fn causes_follow_their_effect() {
        #[derive(Debug, thiserror::Error)]
        #[error("open the file")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(with_causes(&Outer(std::io::Error::other("no disk"))), "open the file: no disk");
    }
}

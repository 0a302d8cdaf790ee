//! The response to the client, whichever way its request went.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tracing::debug;

use crate::admission::Running;
use crate::error::{ApiError, Dialect};
use crate::handoff::Claimed;
use crate::headers::{REQUEST_ID, write_trail};
use crate::metrics::{Ended, Outcome};
use crate::relay::{Held, Holdings, Reader, Relay};
use crate::router::Shared;
use crate::targets::Occupied;

/// Who is answered.
pub(super) struct Client {
    id: Option<HeaderValue>,
    /// What the client is told: its own id, if it has one.
    shown: Arc<str>,
    dialect: Dialect,
}

/// An answer that an engine has begun.
pub(super) struct Begun {
    pub(super) status: StatusCode,
    /// Those for the client.
    pub(super) headers: HeaderMap,
    pub(super) held: Held,
    pub(super) running: Running,
    pub(super) seat: Occupied,
    pub(super) claimed: Option<Claimed>,
}

impl Client {
    /// By its request; `ours` stands in for an id that it does not give.
    pub(super) fn of(request: &Request<Body>, ours: &Arc<str>) -> Self {
        let id = request.headers().get(REQUEST_ID).cloned();
        let shown = id.as_ref().and_then(|id| id.to_str().ok()).map_or_else(|| Arc::clone(ours), Arc::from);
        Self { id, shown, dialect: Dialect::of(request.uri().path()) }
    }

    /// Its id, as far as a sidecar takes it for a label.
    pub(super) fn label(&self) -> Option<Arc<str>> {
        self.id.is_some().then_some(&self.shown).filter(|id| is_label(id)).cloned()
    }

    /// The answer as it comes.
    pub(super) fn begun(self, shared: &Shared, mut ended: Ended, begun: Begun) -> Response<Body> {
        ended.first_byte(begun.status);
        self.passed(shared, ended, begun)
    }

    /// What an engine says, which need not be the beginning of an answer.
    pub(super) fn passed(self, shared: &Shared, mut ended: Ended, begun: Begun) -> Response<Body> {
        let Begun { status, mut headers, held, running, seat, claimed } = begun;
        ended.trail.status = Some(status);
        self.write(shared, &ended, &mut headers);
        let whole = match status {
            status if status.is_client_error() => Outcome::ClientError,
            status if status.is_server_error() => Outcome::Failed,
            _ => Outcome::Ok,
        };
        let holdings = Holdings { ended, running, decode_rank: seat, claimed, whole };
        let reader = Reader { request_id: self.shown, dialect: self.dialect };
        let relay = Relay::new(held, shared.config.deadlines.idle, shared.cut.clone(), reader, holdings);
        let mut response = Response::new(Body::new(relay));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// A response that is complete already.
    pub(super) fn complete(self, shared: &Shared, mut ended: Ended, mut response: Response<Body>) -> Response<Body> {
        ended.trail.status = Some(response.status());
        self.write(shared, &ended, response.headers_mut());
        response
    }

    /// An error of the router's own.
    pub(super) fn failed(self, shared: &Shared, mut ended: Ended, error: &ApiError) -> Response<Body> {
        debug!(code = %error.code, status = error.status.as_u16(), "request ends with an error");
        ended.outcome(error.outcome);
        ended.trail.code = Some(error.code.clone());
        let response = error.answer(self.dialect, &self.shown);
        self.complete(shared, ended, response)
    }

    /// The request's way, and the client's id back, or ours.
    fn write(&self, shared: &Shared, ended: &Ended, headers: &mut HeaderMap) {
        write_trail(&ended.trail, shared.config.observe.debug_headers, headers);
        if let Some(id) = self.id.clone().or_else(|| HeaderValue::from_str(&ended.trail.id).ok()) {
            headers.insert(REQUEST_ID, id);
        }
    }
}

/// What a sidecar takes as a label.
fn is_label(text: &str) -> bool {
    !text.is_empty() && text.len() <= 256 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

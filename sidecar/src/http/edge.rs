//! What happens to every request before and after its handler.
//!
//! A request id and a trace context come back when they are well formed; nothing else of a request is ever put into a header.

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serving::Answer;
use telemetry::trace::{Context, Kind, Received, Span};
use tokio::time::Instant;
use tracing::{Instrument, debug, debug_span};

use crate::http::{Api, debug};
use crate::model::Code;
use crate::problem::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// A client's id that is longer is replaced by one of ours.
const MAX_REQUEST_ID: usize = 128;

/// Paths that a supervisor asks without a token; they tell nothing about requests.
const OPEN: [&str; 3] = ["/livez", "/readyz", LONG];

/// The one of them that may take its time, and so has no place among those that must be answered always.
const LONG: &str = "/quietz";

/// The routes as connections see them.
#[derive(Clone, Debug)]
pub(super) struct Front(pub(super) Router);

impl Answer for Front {
    async fn answer(self, request: Request) -> Response {
        self.0.answer(request).await
    }

    /// Refused where every request is named and put on record; a supervisor is answered even now.
    async fn refuse(self, mut request: Request) -> Response {
        request.extensions_mut().insert(NoRoom);
        self.0.answer(request).await
    }
}

/// Set on the request of a connection that there is no room for.
#[derive(Clone, Copy, Debug)]
struct NoRoom;

/// Names the request, opens its span, checks whether it may be answered, and echoes the id.
pub(super) async fn admit(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let shown = id.to_str().unwrap_or_default();
    let path = request.uri().path();
    let span =
        debug_span!("http", request_id = shown, method = %request.method(), path, traceparent = tracing::field::Empty);
    let is_refused = request.extensions().get::<NoRoom>().is_some();
    let admitted = if is_open(path) && !(is_refused && path == LONG) {
        Ok(())
    } else if is_refused {
        Err(Problem::too_many_connections())
    } else if api.0.token.as_ref().is_some_and(|token| !token.admits(request.headers())) {
        let detail = "send Authorization: Bearer with the token of --token-file";
        Err(Problem::new(Code::Unauthorized, detail))
    } else {
        Ok(())
    };
    let caller = request.headers().get(TRACE_PARENT).and_then(|value| value.to_str().ok());
    let sent = caller.and_then(Context::parse);
    if let Some(sent) = sent {
        span.record("traceparent", sent.to_string());
    }
    let traced = api.pod().spans().continued(caller).map(|received| (received, Route::of(&request)));
    // What is done for this request goes on from its own span, or from the caller's where none is made.
    if let Some(context) = traced.as_ref().map(|(traced, _)| traced.context).or(sent) {
        request.extensions_mut().insert(context);
    }
    let since = Instant::now();
    let mut response = match admitted {
        Ok(()) => next.run(request).instrument(span.clone()).await,
        Err(refused) => refused.into_response(),
    };
    span.in_scope(|| debug!(status = response.status().as_u16(), elapsed_ms = since.elapsed().as_millis(), "answered"));
    if let Some((Received { context, parent }, route)) = traced {
        let status = response.status();
        let ended = Span::new(context, parent, "http", since, Instant::now())
            .kind(Kind::Server)
            .text("request_id", id.to_str().unwrap_or_default().to_owned())
            .text("http.request.method", route.method)
            .text("http.route", route.path)
            .number("http.response.status_code", status.as_u16())
            .failed(status.is_server_error().then(|| status.as_str().to_owned()));
        api.pod().spans().send(vec![ended]);
    }
    response.headers_mut().insert(REQUEST_ID, id);
    // As it was understood, not as it was written: a later version may have more in it.
    if let Some(sent) = sent.and_then(|sent| HeaderValue::try_from(sent.to_string()).ok()) {
        response.headers_mut().insert(TRACE_PARENT, sent);
    }
    response
}

/// What a span says of a request: the route's pattern, never ids.
struct Route {
    method: String,
    path: String,
}

impl Route {
    fn of(request: &Request) -> Self {
        let path = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
        Self { method: request.method().to_string(), path }
    }
}

/// Whether a path is answered without the token.
pub(super) fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || debug::is_page(path)
}

/// Any path that is not routed.
pub(super) async fn not_found(uri: Uri) -> Problem {
    Problem::new(Code::NotFound, format!("there is no {} in this API", uri.path()))
}

/// A path that is routed, for other methods.
pub(super) async fn method_not_allowed(method: Method) -> Problem {
    Problem::method_not_allowed(&method)
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let theirs = headers.get(REQUEST_ID).filter(|id| {
        let id = id.as_bytes();
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
    });
    theirs.cloned().unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().to_string();
        HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("unnamed"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_decent_request_id_is_kept_and_any_other_replaced() {
        assert_eq!(request_id(&one(REQUEST_ID, "r-1")), "r-1");
        for other in ["", "two words", &"x".repeat(MAX_REQUEST_ID + 1)] {
            assert_eq!(request_id(&one(REQUEST_ID, other)).len(), 36, "{other}");
        }
        assert_eq!(request_id(&HeaderMap::new()).len(), 36);
    }
}

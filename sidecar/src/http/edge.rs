//! What happens to every request before and after its handler.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use tokio::time::Instant;
use tracing::{Instrument, debug, debug_span};

use crate::http::{Api, debug};
use crate::model::Code;
use crate::problem::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// A client's id that is longer is replaced by one of ours.
const MAX_REQUEST_ID: usize = 128;

/// Paths that a supervisor asks without a token; they tell nothing about requests.
pub(super) const OPEN: [&str; 2] = ["/livez", "/readyz"];

/// Names the request, opens its span, checks the token, and echoes the id.
pub(super) async fn admit(State(api): State<Api>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let shown = id.to_str().unwrap_or_default();
    let path = request.uri().path();
    let span =
        debug_span!("http", request_id = shown, method = %request.method(), path, traceparent = tracing::field::Empty);
    if let Some(parent) = trace_parent(request.headers()) {
        span.record("traceparent", parent);
    }
    let since = Instant::now();
    let open = OPEN.contains(&path) || debug::is_page(path);
    let admitted = open || api.0.token.as_ref().is_none_or(|token| token.admits(request.headers()));
    let mut response = if admitted {
        next.run(request).instrument(span.clone()).await
    } else {
        let detail = "send Authorization: Bearer with the token of --token-file";
        Problem::new(Code::Unauthorized, detail).into_response()
    };
    span.in_scope(|| debug!(status = response.status().as_u16(), elapsed_ms = since.elapsed().as_millis(), "answered"));
    response.headers_mut().insert(REQUEST_ID, id);
    response
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

/// W3C trace context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`. Anything else is ignored, as the standard asks.
fn trace_parent(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(TRACE_PARENT)?.to_str().ok()?;
    let fields: Vec<&str> = text.split('-').collect();
    let hex = |field: &str| field.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let lengths_fit = fields.iter().map(|field| field.len()).eq([2, 32, 16, 2]);
    (lengths_fit && fields.iter().all(|field| hex(field))).then_some(text)
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

    #[test]
    fn only_a_well_formed_trace_parent_counts() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace_parent(&one(TRACE_PARENT, good)), Some(good));
        for bad in ["", "00-1-2-3", &good.to_uppercase(), &format!("{good}-extra")] {
            assert_eq!(trace_parent(&one(TRACE_PARENT, bad)), None, "{bad}");
        }
    }
}

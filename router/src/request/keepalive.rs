//! Comments that keep a stream's connection alive while its first event is being worked for. With the first of them the status
//! 200 has gone out: whatever comes then, an error too, comes as events.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep, sleep};

use crate::error::{ApiError, Dialect};
use crate::headers::REQUEST_ID;
use crate::metrics::Outcome;

/// Longest error that becomes an event as it is.
const MAX_ERROR: usize = 1 << 20;
const COMMENT: &[u8] = b": keep-alive\n\n";

/// Set once a request is known to want a stream and is being worked on; it travels in the request's extensions.
#[derive(Clone, Debug, Default)]
pub(super) struct Streaming(Arc<AtomicBool>);

impl Streaming {
    /// Says that the request of these extensions wants a stream, to whoever waits for that.
    pub(super) fn announce(extensions: &http::Extensions) {
        if let Some(Self(streams)) = extensions.get() {
            streams.store(true, Ordering::Relaxed);
        }
    }
}

/// Serves a request with `work`; a stream that has not begun by then gets a comment every so often.
pub(super) async fn serve<W>(
    mut request: Request<Body>,
    every: Duration,
    work: impl FnOnce(Request<Body>) -> W,
) -> Response<Body>
where
    W: Future<Output = Response<Body>> + Send + 'static,
{
    let streaming = Streaming::default();
    request.extensions_mut().insert(streaming.clone());
    let request_id = request.headers().get(REQUEST_ID).cloned();
    let dialect = Dialect::of(request.uri().path());
    let mut work = Box::pin(work(request));
    loop {
        tokio::select! {
            response = &mut work => return response,
            () = sleep(every) => if streaming.0.load(Ordering::Relaxed) { break },
        }
    }
    let body = Waiting {
        work: Some(Box::pin(async move { as_events(work.await, dialect).await })),
        begun: None,
        every,
        next: Box::pin(sleep(Duration::ZERO)),
    };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Some(id) = request_id {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// The events of an answer: its own, or one that holds what it says.
async fn as_events(response: Response<Body>, dialect: Dialect) -> Body {
    let (head, body) = response.into_parts();
    let media_type = head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if head.status.is_success() && media_type.starts_with(b"text/event-stream") {
        return body;
    }
    let Ok(text) = axum::body::to_bytes(body, MAX_ERROR).await else {
        let words = "the request failed, and what there is to say of it is too long for an event";
        let error = ApiError::new(StatusCode::BAD_GATEWAY, "request_failed", words, Outcome::Failed);
        let id = head.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
        return Body::from(error.event(dialect, id));
    };
    let mut event = Vec::with_capacity(text.len() + 32);
    if dialect == Dialect::Anthropic && !head.status.is_success() {
        event.extend_from_slice(b"event: error\n");
    }
    for line in text.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| !line.is_empty()) {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    Body::from(event)
}

/// Comments until the work is done, then what it brought.
struct Waiting {
    work: Option<Pin<Box<dyn Future<Output = Body> + Send>>>,
    begun: Option<Body>,
    every: Duration,
    next: Pin<Box<Sleep>>,
}

impl HttpBody for Waiting {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Some(work) = &mut this.work {
            match work.as_mut().poll(cx) {
                Poll::Ready(body) => {
                    this.begun = Some(body);
                    this.work = None;
                }
                Poll::Pending => {
                    std::task::ready!(this.next.as_mut().poll(cx));
                    this.next.as_mut().reset(Instant::now() + this.every);
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(COMMENT)))));
                }
            }
        }
        match &mut this.begun {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.work.is_none() && self.begun.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}

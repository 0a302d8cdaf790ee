//! What is known of one connection, written down by its bytes and its requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::Version;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The rest of a request's head.
    Head,
    /// The next request.
    Idle,
    /// Nothing: requests are being answered.
    Answering,
}

/// The notes on one connection.
///
/// A part of a head that came with the request before it is not seen as one: such a connection is closed as an idle one.
#[derive(Debug)]
pub(crate) struct Seen {
    opened: Instant,
    requests: AtomicU32,
    /// Bytes have come since the last answer, or none was given yet.
    head: AtomicBool,
    /// Bytes between requests need not be a request's: HTTP/2 has frames of its own.
    frames: AtomicBool,
    /// When the phase began, in milliseconds since `opened`.
    since: AtomicU64,
}

impl Seen {
    /// A connection that has just been opened owes a request.
    pub(crate) fn new(opened: Instant) -> Self {
        Self {
            opened,
            requests: AtomicU32::new(0),
            head: AtomicBool::new(true),
            frames: AtomicBool::new(false),
            since: AtomicU64::new(0),
        }
    }

    /// What it waits for, and since when.
    pub(crate) fn phase(&self) -> (Phase, Instant) {
        let since = self.opened + Duration::from_millis(self.since.load(Ordering::Relaxed));
        if self.requests.load(Ordering::Relaxed) > 0 {
            return (Phase::Answering, since);
        }
        if self.head.load(Ordering::Relaxed) { (Phase::Head, since) } else { (Phase::Idle, since) }
    }

    /// A request's head is complete; it is under way until the guard goes.
    pub(crate) fn begin(self: &Arc<Self>, version: Version) -> UnderWay {
        if version == Version::HTTP_2 {
            self.frames.store(true, Ordering::Relaxed);
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn read(&self) {
        if self.requests.load(Ordering::Relaxed) > 0 || self.head.load(Ordering::Relaxed) {
            return;
        }
        self.since.store(self.now(), Ordering::Relaxed);
        if !self.frames.load(Ordering::Relaxed) {
            self.head.store(true, Ordering::Relaxed);
        }
    }
}

/// One request of a connection.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Seen>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.since.store(self.0.now(), Ordering::Relaxed);
        self.0.head.store(false, Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body; its request is under way until it goes.
#[derive(Debug)]
pub(crate) struct Answering {
    body: Body,
    _under_way: UnderWay,
}

impl Answering {
    pub(crate) fn new(body: Body, under_way: UnderWay) -> Self {
        Self { body, _under_way: under_way }
    }
}

impl http_body::Body for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection's bytes.
#[derive(Debug)]
pub(crate) struct SeenIo<I> {
    inner: I,
    seen: Arc<Seen>,
}

impl<I> SeenIo<I> {
    pub(crate) fn new(inner: I, seen: Arc<Seen>) -> Self {
        Self { inner, seen }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for SeenIo<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.seen.read();
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for SeenIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

//! One connection to a server, driven by whoever waits for its answer.
//!
//! Every request crosses here several times and every streamed chunk once. A connection with a task of its own costs two
//! wake-ups of another task for each; here hyper's connection is polled in the task that wants what it brings.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::rt::{Read, Write};

use super::Payload;
use super::pool::{Pool, ServerKey};
use super::turns::Turns;

/// What a line may run over.
pub trait Wire: Read + Write + Unpin + Send + 'static {}

impl<W: Read + Write + Unpin + Send + 'static> Wire for W {}

/// The most that is read ahead of an answer whose client is slow; also the longest head of an answer.
const READ_AHEAD: usize = 64 * 1024;

/// A connection and the only one who sends on it.
pub(super) struct Line<W: Wire> {
    sender: SendRequest<Payload>,
    connection: Connection<W, Payload>,
    /// The connection has come to its end.
    over: bool,
    turns: Arc<Turns>,
    waker: Waker,
}

impl<W: Wire> Line<W> {
    /// Boxed: it goes from hand to hand.
    pub(super) async fn over(wire: W) -> hyper::Result<Box<Self>> {
        let (sender, connection) = Builder::new().max_buf_size(READ_AHEAD).handshake(wire).await?;
        let turns = Arc::new(Turns::default());
        let waker = Waker::from(Arc::clone(&turns));
        Ok(Box::new(Self { sender, connection, over: false, turns, waker }))
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(super) async fn exchange(
        mut self: Box<Self>,
        request: Request<Payload>,
    ) -> Result<(Response<Incoming>, Box<Self>), TrySendError<Request<Payload>>> {
        let Self { sender, connection, over, turns, waker } = &mut *self;
        let mut answer = std::pin::pin!(sender.try_send_request(request));
        let answered =
            std::future::poll_fn(|cx| drive(connection, over, turns, waker, cx, |cx| answer.as_mut().poll(cx)));
        let response = answered.await?;
        Ok((response, self))
    }

    /// One step of an answer's body.
    fn poll_body(&mut self, body: &mut Incoming, cx: &mut Context<'_>) -> PolledFrame {
        let Self { connection, over, turns, waker, .. } = self;
        drive(connection, over, turns, waker, cx, |cx| Pin::new(&mut *body).poll_frame(cx))
    }

    /// Whether the next request may be sent: the last answer is read, and the server has neither closed nor said anything since.
    pub(super) fn is_free(&mut self) -> bool {
        if !self.over {
            let mut cx = Context::from_waker(Waker::noop());
            self.over = Pin::new(&mut self.connection).poll(&mut cx).is_ready();
        }
        !self.over && self.sender.is_ready()
    }
}

type PolledFrame = Poll<Option<Result<Frame<Bytes>, hyper::Error>>>;

/// Polls a connection and the one who waits for it in turns, until both have nothing to do before something comes from outside.
fn drive<W: Wire, T>(
    connection: &mut Connection<W, Payload>,
    over: &mut bool,
    turns: &Turns,
    waker: &Waker,
    cx: &mut Context<'_>,
    mut step: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    turns.begin(cx.waker());
    let mut cx = Context::from_waker(waker);
    loop {
        // Its error reaches whoever waits, too.
        *over = *over || Pin::new(&mut *connection).poll(&mut cx).is_ready();
        if let Poll::Ready(done) = step(&mut cx) {
            turns.end();
            return Poll::Ready(done);
        }
        if !turns.again() {
            return Poll::Pending;
        }
    }
}

/// An answer's body. Read to its end, it leaves its connection to the next request; dropped before, it closes it.
pub(super) struct Answer<W: Wire> {
    body: Incoming,
    line: Option<Box<Line<W>>>,
    pool: Pool<W>,
    server: ServerKey,
    /// What broke it off: told a turn later, so that all that came before it has gone out to the client by then.
    broken: Option<hyper::Error>,
}

impl<W: Wire> Answer<W> {
    pub(super) fn new(body: Incoming, line: Box<Line<W>>, pool: Pool<W>, server: ServerKey) -> Self {
        let mut answer = Self { body, line: Some(line), pool, server, broken: None };
        answer.leave_line();
        answer
    }

    fn leave_line(&mut self) {
        if self.body.is_end_stream()
            && let Some(mut line) = self.line.take()
            && line.is_free()
        {
            self.pool.put(&self.server, line);
        }
    }
}

impl<W: Wire> std::fmt::Debug for Answer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("server", &self.server).finish_non_exhaustive()
    }
}

impl<W: Wire> Body for Answer<W> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let Self { body, line, .. } = &mut *self;
        let polled = match line {
            Some(line) => line.poll_body(body, cx),
            None => Pin::new(body).poll_frame(cx),
        };
        match polled {
            Poll::Ready(Some(Err(error))) => {
                (self.line, self.broken) = (None, Some(error));
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(_) => {
                self.leave_line();
                polled
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! The side channel over TCP. vLLM asks with a `REQ` and listens with a `ROUTER` (`docs/vllm-nixl-protocol.md` §1.1).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::channel::{Answer, Answered, AskError, Endpoint, ServeError, Server, SideChannel, Step};
use crate::network::{Network, Tcp};
use crate::zmtp::{Connection, MessageLimits, SocketType, WireError};

/// What a peer may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one request (a server's side); vLLM's has 17.
    pub request_bytes: u64,
    /// Bytes of one answer (an asker's side); vLLM's has some KiB.
    pub answer_bytes: u64,
    /// Connections at a time; a further one is closed at once.
    pub connections: usize,
    /// How long a peer may take for its greeting, and for taking an answer.
    pub peer: Duration,
    /// How long a connection may be silent; a `REQ` of libzmq connects again by itself.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes: 64 * 1024,
            answer_bytes: 2 * 1024 * 1024,
            connections: 256,
            peer: Duration::from_secs(5),
            idle: Duration::from_secs(60),
        }
    }
}

/// Frames of one message, delimiter included; vLLM's have at most three.
pub(crate) const MAX_FRAMES: usize = 16;
/// Pause after a failed `accept` (usually no file descriptor left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The side channel of vLLM: ZMTP 3.0 over TCP.
#[derive(Clone, Debug)]
pub struct Zmq<N = Tcp> {
    limits: Limits,
    network: N,
}

impl Default for Zmq {
    fn default() -> Self {
        Self::new()
    }
}

impl Zmq {
    /// With the default [`Limits`].
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// With limits of the caller's choice.
    pub fn with_limits(limits: Limits) -> Self {
        Self { limits, network: Tcp }
    }
}

impl<N: Network> Zmq<N> {
    /// Over another network, with the default [`Limits`].
    pub fn over(network: N) -> Self {
        Self { limits: Limits::default(), network }
    }

    async fn ask_on_one_connection(
        &self,
        to: &Endpoint,
        requests: Vec<Bytes>,
        step: &Mutex<Step>,
    ) -> Result<Vec<Vec<Bytes>>, AskError> {
        let connecting = self.network.connect(to).await;
        let stream = connecting.map_err(|source| AskError::Connect { endpoint: to.clone(), source })?;
        let wire = |source| AskError::Wire { endpoint: to.clone(), source };
        *step.lock() = Step::Greet;
        let limits = MessageLimits { bytes: self.limits.answer_bytes, frames: MAX_FRAMES };
        let mut connection = Connection::greet(stream, SocketType::Req, limits).await.map_err(wire)?;
        *step.lock() = Step::Answer;
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            connection.send(&[Bytes::new(), request]).await.map_err(wire)?;
            let mut frames = connection.receive().await.map_err(wire)?;
            if frames.first().is_none_or(|delimiter| !delimiter.is_empty()) {
                return Err(wire(WireError::NoDelimiter));
            }
            frames.remove(0);
            answers.push(frames);
        }
        Ok(answers)
    }
}

impl<N: Network> SideChannel for Zmq<N> {
    fn ask_all<'a>(
        &'a self,
        to: &'a Endpoint,
        requests: Vec<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Vec<Vec<Bytes>>, AskError>> {
        Box::pin(async move {
            let step = Mutex::new(Step::Connect);
            match timeout(deadline, self.ask_on_one_connection(to, requests, &step)).await {
                Ok(answer) => answer,
                Err(_) => {
                    let step = *step.lock();
                    Err(AskError::Deadline { endpoint: to.clone(), step, after: deadline })
                }
            }
        })
    }

    fn serve<'a>(&'a self, on: &'a Endpoint, answer: Arc<dyn Answer>) -> BoxFuture<'a, Result<Server, ServeError>> {
        Box::pin(async move {
            let failed = |source: io::Error| {
                let endpoint = on.clone();
                if source.kind() == io::ErrorKind::AddrInUse {
                    ServeError::InUse { endpoint }
                } else {
                    ServeError::Bind { endpoint, source }
                }
            };
            let (listener, port) = self.network.listen(on).await.map_err(failed)?;
            let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
            let service = Service { answer, limits: self.limits, stop: stop.clone(), tasks: tasks.clone() };
            tasks.spawn(service.accept::<N>(listener));
            Ok(Server::new(on.with_port(port), stop, tasks))
        })
    }
}

/// What the accept loop and its connections share.
#[derive(Clone)]
struct Service {
    answer: Arc<dyn Answer>,
    limits: Limits,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Service {
    async fn accept<N: Network>(self, listener: N::Listener) {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = N::accept(&listener) => accepted,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "side channel cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::warn!(limit = self.limits.connections, "side channel has too many connections");
                continue;
            };
            let service = self.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = service.stop.cancelled() => {}
                    ended = service.converse(stream) => {
                        if let Err(error) = ended {
                            tracing::debug!(%error, "side channel connection ended");
                        }
                    }
                }
                drop(place);
            });
        }
    }

    /// Answers one peer until it leaves, is silent for too long or speaks nonsense.
    async fn converse(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), WireError> {
        let limits = MessageLimits { bytes: self.limits.request_bytes, frames: MAX_FRAMES };
        let greeting = Connection::greet(stream, SocketType::Router, limits);
        let Ok(greeted) = timeout(self.limits.peer, greeting).await else { return Ok(()) };
        let mut connection = greeted?;
        loop {
            let Ok(received) = timeout(self.limits.idle, connection.receive()).await else { return Ok(()) };
            let frames = received?;
            let (answered, framed) = match frames.as_slice() {
                [delimiter, request] if delimiter.is_empty() => (self.answer.answer(request), true),
                _ => (self.answer.ill_framed(), false),
            };
            match answered {
                Answered::Reply(payload) if framed => {
                    let mut reply = vec![Bytes::new()];
                    reply.extend(payload);
                    let Ok(sent) = timeout(self.limits.peer, connection.send(&reply)).await else { return Ok(()) };
                    sent?;
                }
                Answered::Reply(_) | Answered::Ignore => {}
                Answered::Die => {
                    self.stop.cancel();
                    return Ok(());
                }
            }
        }
    }
}

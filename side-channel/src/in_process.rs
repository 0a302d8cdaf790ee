//! A side channel without sockets: servers and askers of one process find one another by endpoint.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::channel::{Answer, Answered, AskError, Endpoint, ServeError, Server, SideChannel, Step};
use crate::zmtp::WireError;

/// A network of its own; clones share it.
#[derive(Clone, Default)]
pub struct InProcess {
    servers: Arc<Mutex<BTreeMap<Endpoint, Entry>>>,
}

struct Entry {
    answer: Arc<dyn Answer>,
    stop: CancellationToken,
}

/// The first port that is given out for port 0.
const FIRST_PORT: u16 = 20_000;

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcess").field("servers", &self.servers.lock().len()).finish()
    }
}

impl InProcess {
    /// An empty network.
    pub fn new() -> Self {
        Self::default()
    }

    /// The server there, unless it has ended.
    fn find(&self, at: &Endpoint) -> Option<(Arc<dyn Answer>, CancellationToken)> {
        let servers = self.servers.lock();
        let entry = servers.get(at).filter(|entry| !entry.stop.is_cancelled())?;
        Some((Arc::clone(&entry.answer), entry.stop.clone()))
    }

    fn register(&self, on: &Endpoint, answer: Arc<dyn Answer>) -> Result<Server, ServeError> {
        let mut servers = self.servers.lock();
        servers.retain(|_, entry| !entry.stop.is_cancelled());
        let in_use = || ServeError::InUse { endpoint: on.clone() };
        let local = if on.port == 0 {
            let mut free = (FIRST_PORT..=u16::MAX).map(|port| on.with_port(port));
            free.find(|endpoint| !servers.contains_key(endpoint)).ok_or_else(in_use)?
        } else {
            on.clone()
        };
        if servers.contains_key(&local) {
            return Err(in_use());
        }
        let stop = CancellationToken::new();
        servers.insert(local.clone(), Entry { answer, stop: stop.clone() });
        Ok(Server::new(local, stop, TaskTracker::new()))
    }

    async fn ask_in_turn(
        &self,
        to: &Endpoint,
        requests: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<Vec<Vec<Bytes>>, AskError> {
        let ends = Instant::now() + deadline;
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            let Some((answer, stop)) = self.find(to) else {
                let source = io::Error::from(io::ErrorKind::ConnectionRefused);
                return Err(AskError::Connect { endpoint: to.clone(), source });
            };
            match answer.answer(&request) {
                Answered::Reply(frames) => answers.push(frames),
                Answered::Ignore => {
                    tokio::time::sleep_until(ends).await;
                    return Err(AskError::Deadline { endpoint: to.clone(), step: Step::Answer, after: deadline });
                }
                Answered::Die => {
                    stop.cancel();
                    return Err(AskError::Wire { endpoint: to.clone(), source: WireError::Closed });
                }
            }
        }
        Ok(answers)
    }
}

impl SideChannel for InProcess {
    fn ask_all<'a>(
        &'a self,
        to: &'a Endpoint,
        requests: Vec<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Vec<Vec<Bytes>>, AskError>> {
        Box::pin(self.ask_in_turn(to, requests, deadline))
    }

    fn serve<'a>(&'a self, on: &'a Endpoint, answer: Arc<dyn Answer>) -> BoxFuture<'a, Result<Server, ServeError>> {
        Box::pin(async move { self.register(on, answer) })
    }
}

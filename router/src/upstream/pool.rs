//! Connections that wait for their next request.

use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Uri};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use super::line::{Line, Wire};

/// Shorter than the keep-alive of uvicorn (5 s), in front of which vLLM sits: a connection that the engine is about to
/// close is never used again.
const IDLE: Duration = Duration::from_secs(3);

/// Connections to one server that are kept; more are closed.
const MAX_IDLE: usize = 4096;

/// A server's host and port as its URI writes them, with the scheme before them for https, which shares no connection with http; and how
/// requests to it name it.
#[derive(Clone, Debug)]
pub(super) struct ServerKey(Arc<(Box<str>, HeaderValue)>);

impl ServerKey {
    fn new(name: Cow<'_, str>, server: &str) -> Option<Self> {
        Some(Self(Arc::new((name.into(), HeaderValue::from_str(server).ok()?))))
    }

    /// The value of `host` in requests to it.
    pub(super) fn host(&self) -> HeaderValue {
        self.0.1.clone()
    }
}

impl Borrow<str> for ServerKey {
    fn borrow(&self) -> &str {
        &self.0.0
    }
}

// As its name, by which it is looked up.
impl PartialEq for ServerKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.0 == other.0.0
    }
}

impl Eq for ServerKey {}

impl PartialOrd for ServerKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ServerKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.0.cmp(&other.0.0)
    }
}

/// The connections of all servers, each server's with the longest idle first.
pub(super) struct Pool<W: Wire>(Arc<Mutex<Kept<W>>>);

/// A connection, and since when it waits.
type Idle<W> = (Instant, Box<Line<W>>);

struct Kept<W: Wire> {
    idle: BTreeMap<ServerKey, Vec<Idle<W>>>,
    /// A task closes what has been idle for too long.
    is_swept: bool,
}

impl<W: Wire> Clone for Pool<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W: Wire> Default for Pool<W> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Kept { idle: BTreeMap::new(), is_swept: false })))
    }
}

impl<W: Wire> Pool<W> {
    /// How a server is called here; `None` when the URI names none, or one that no header can hold.
    pub(super) fn key(&self, uri: &Uri) -> Option<ServerKey> {
        let server = uri.authority()?.as_str();
        let name = match uri.scheme_str() {
            Some("https") => Cow::Owned(format!("https://{server}")),
            Some(_) | None => Cow::Borrowed(server),
        };
        match self.0.lock().idle.get_key_value(&*name) {
            Some((key, _)) => Some(key.clone()),
            None => ServerKey::new(name, server),
        }
    }

    /// The connection to a server that was used last, if one is still open.
    pub(super) fn take(&self, server: &ServerKey) -> Option<Box<Line<W>>> {
        let oldest = Instant::now().checked_sub(IDLE);
        loop {
            let (since, mut line) = self.0.lock().idle.get_mut(server)?.pop()?;
            if oldest.is_none_or(|oldest| since > oldest) && line.is_free() {
                return Some(line);
            }
        }
    }

    /// Keeps a connection that is free.
    pub(super) fn put(&self, server: &ServerKey, line: Box<Line<W>>) {
        let mut kept = self.0.lock();
        let now = Instant::now();
        match kept.idle.get_mut(server) {
            Some(idle) if idle.len() >= MAX_IDLE => return,
            Some(idle) => idle.push((now, line)),
            None => drop(kept.idle.insert(server.clone(), vec![(now, line)])),
        }
        if !std::mem::replace(&mut kept.is_swept, true) {
            drop(kept);
            self.sweep_while_kept();
        }
    }

    /// Closes what nobody uses, for as long as there is something to close.
    fn sweep_while_kept(&self) {
        let kept = Arc::downgrade(&self.0);
        TaskTracker::new().spawn(async move {
            loop {
                sleep(IDLE).await;
                let Some(kept) = kept.upgrade() else { break };
                if !kept.lock().sweep() {
                    break;
                }
            }
        });
    }
}

impl<W: Wire> Kept<W> {
    /// Closes what has been idle for too long; says whether there is anything left.
    fn sweep(&mut self) -> bool {
        let oldest = Instant::now().checked_sub(IDLE);
        self.idle.retain(|_, idle| {
            idle.retain(|(since, _)| oldest.is_none_or(|oldest| *since > oldest));
            !idle.is_empty()
        });
        self.is_swept = !self.idle.is_empty();
        self.is_swept
    }
}

impl<W: Wire> std::fmt::Debug for Pool<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

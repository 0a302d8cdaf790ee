//! Connections that wait for their next request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use super::line::Line;

/// Shorter than the keep-alive of uvicorn (5 s), in front of which vLLM sits: a connection that the engine is about to
/// close is never used again.
const IDLE: Duration = Duration::from_secs(3);

/// Connections to one server that are kept; more are closed.
const MAX_IDLE: usize = 4096;

/// A server's host and port as its URI writes them.
pub(super) type ServerKey = Arc<str>;

/// The connections of all servers, each server's with the longest idle first.
#[derive(Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    idle: BTreeMap<ServerKey, Vec<(Instant, Box<Line>)>>,
    /// A task closes what has been idle for too long.
    is_swept: bool,
}

impl Pool {
    /// How a server is called here.
    pub(super) fn key(&self, server: &Authority) -> ServerKey {
        match self.0.lock().idle.get_key_value(server.as_str()) {
            Some((key, _)) => Arc::clone(key),
            None => server.as_str().into(),
        }
    }

    /// The connection to a server that was used last, if one is still open.
    pub(super) fn take(&self, server: &ServerKey) -> Option<Box<Line>> {
        let oldest = Instant::now().checked_sub(IDLE);
        loop {
            let (since, mut line) = self.0.lock().idle.get_mut(server)?.pop()?;
            if oldest.is_none_or(|oldest| since > oldest) && line.is_free() {
                return Some(line);
            }
        }
    }

    /// Keeps a connection that is free.
    pub(super) fn put(&self, server: &ServerKey, line: Box<Line>) {
        let mut kept = self.0.lock();
        let now = Instant::now();
        match kept.idle.get_mut(server) {
            Some(idle) if idle.len() >= MAX_IDLE => return,
            Some(idle) => idle.push((now, line)),
            None => drop(kept.idle.insert(Arc::clone(server), vec![(now, line)])),
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

impl Kept {
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

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

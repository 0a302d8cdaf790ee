//! Ended decode legs, told to each sidecar together: under load one request for many instead of one for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, Uri};
use kv::ids::TransferId;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::{PAUSE, TRIES};
use crate::sidecar::{MAX_FINISHED, SidecarError, Sidecars};

/// How long the first of them waits for others. D itself tells its sidecar when it has read; this only follows.
const GATHER: Duration = Duration::from_millis(10);

/// What has ended and was not told yet, by sidecar. One task for each sidecar in here tells it; bounded by the requests in flight.
#[derive(Clone, Debug)]
pub(super) struct Endings {
    waiting: Arc<Mutex<BTreeMap<String, Vec<TransferId>>>>,
    sidecars: Sidecars,
    tasks: TaskTracker,
}

impl Endings {
    pub(super) fn new(sidecars: Sidecars, tasks: TaskTracker) -> Self {
        Self { waiting: Arc::default(), sidecars, tasks }
    }

    /// The decode leg of a landed transfer has ended.
    pub(super) fn tell(&self, sidecar: &Uri, transfer: &TransferId) {
        // Outside of the runtime the process ends: the claim lapses.
        let Ok(runtime) = Handle::try_current() else { return };
        let key = sidecar.authority().map_or("", |authority| authority.as_str());
        let mut waiting = self.waiting.lock();
        if let Some(others) = waiting.get_mut(key) {
            others.push(transfer.clone());
            return;
        }
        waiting.insert(key.to_owned(), vec![transfer.clone()]);
        drop(waiting);
        let (this, sidecar, key) = (self.clone(), sidecar.clone(), key.to_owned());
        let told = async move {
            sleep(GATHER).await;
            let ended = this.waiting.lock().remove(&key).unwrap_or_default();
            for some in ended.chunks(MAX_FINISHED) {
                this.tell_all(&sidecar, some).await;
            }
        };
        self.tasks.spawn_on(told, &runtime);
    }

    async fn tell_all(&self, sidecar: &Uri, ended: &[TransferId]) {
        for tries_left in (0..TRIES).rev() {
            match self.sidecars.finish_all(sidecar, ended).await {
                Ok(()) => return,
                // A sidecar of another release, which takes them one by one.
                Err(SidecarError::Problem {
                    status: StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, ..
                }) => {
                    for transfer in ended {
                        super::finish(&self.sidecars, sidecar, transfer).await;
                    }
                    return;
                }
                Err(error) if tries_left == 0 => {
                    let (transfers, error) = (ended.len(), &error as &dyn std::error::Error);
                    warn!(transfers, error, "transfers are not finished; their claims will lapse");
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

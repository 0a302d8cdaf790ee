//! P's sidecar as D's asks it, without HTTP between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{StatusCode, Uri};
use kv::digest::Verify;
use kv::readiness::RankState;
use nixl::faulty::FaultPlan;
use parking_lot::Mutex;
use sidecar::digest::source::{SourceDigests, SourceError};
use sidecar::digest::{DigestAsk, Digests};
use sidecar::model::{Faults, PodConfig, Role};
use sidecar::pod::{Parts, Pod};
use tokio_util::sync::CancellationToken;

use crate::world::World;

/// Whoever has no pod behind it gives no answer.
#[derive(Debug)]
pub(crate) struct Sources {
    pod: Mutex<Option<Pod>>,
    pub(crate) asked: AtomicU64,
    /// How its reads go wrong.
    pub(crate) plan: FaultPlan,
    /// Waits before it answers.
    pub(crate) delay: Mutex<Duration>,
    /// Leaves out the last digest.
    pub(crate) stingy: Mutex<bool>,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            pod: Mutex::default(),
            asked: AtomicU64::new(0),
            plan: FaultPlan::new(),
            delay: Mutex::default(),
            stingy: Mutex::default(),
        }
    }
}

impl Sources {
    /// Answers with what this pod says, once its rank is ready.
    pub(crate) async fn stand_in(&self, pod: &Pod) {
        let mut ranks = pod.ranks();
        let ready = ranks.wait_for(|ranks| ranks.iter().all(|rank| rank.state == RankState::Ready));
        tokio::time::timeout(Duration::from_secs(120), ready).await.unwrap().unwrap();
        *self.pod.lock() = Some(pod.clone());
    }

    async fn answer(&self, ask: &DigestAsk) -> Result<Digests, SourceError> {
        let delay = *self.delay.lock();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let pod = self.pod.lock().clone().ok_or(SourceError::Answer("nobody is there"))?;
        let refused = |error: sidecar::digest::DigestError| SourceError::Refused {
            status: StatusCode::from_u16(error.code().status()).unwrap(),
            code: error.code().as_str().to_owned(),
            detail: error.to_string(),
        };
        let mut digests = pod.digests(ask.clone()).await.map_err(refused)?;
        if *self.stingy.lock() {
            digests.shards[0].pop();
        }
        Ok(digests)
    }
}

impl World {
    /// Starts the sidecar of P's pod and waits until it knows its engine.
    pub(crate) async fn start_source(&self) -> Pod {
        let config = PodConfig {
            role: Role::Prefill,
            engine_side_channel: self.p.endpoint.clone(),
            dp_size: 1,
            rank_offset: 0,
            verify: Verify::Off,
            faults: Faults::default(),
            ..self.config.clone()
        };
        let parts = Parts { fabrics: Arc::clone(&self.source_fabrics), ..self.parts.clone() };
        let pod = Pod::start(config, parts, &self.tasks, CancellationToken::new()).await.unwrap();
        self.sources.stand_in(&pod).await;
        pod
    }
}

impl SourceDigests for Sources {
    fn ask<'a>(&'a self, sidecar: &'a Uri, ask: &'a DigestAsk) -> BoxFuture<'a, Result<Digests, SourceError>> {
        assert_eq!(sidecar, "http://source:7700");
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            tokio::time::timeout_at(ask.deadline, self.answer(ask)).await.unwrap_or(Err(SourceError::Late))
        })
    }
}

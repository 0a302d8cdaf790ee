//! The part of a job that needs another engine.

use super::*;
use crate::load;
use crate::scheduler::Holding;

impl Engine {
    /// Reads the missing blocks. The read goes on when the job is cancelled, and keeps the blocks until it has ended:
    /// hardware writes into them.
    pub(super) async fn load(
        self: &Arc<Self>,
        job: &Job,
        params: &KvTransferParams,
        missing: &[Page],
        holding: Holding,
    ) -> Result<Holding, JobError> {
        let Some((remote, _)) = job.kv.remote() else { return Ok(holding) };
        let ours: Vec<BlockId> = missing.iter().map(|page| page.block).collect();
        let (engine, params) = (Arc::clone(self), params.clone());
        let loading = self.tasks.spawn(async move {
            let result = engine.read(&remote, &params, &ours).await;
            engine.settle(&remote, result, holding).await
        });
        tokio::select! {
            loaded = loading => loaded.unwrap_or(Err(LoadError::Lost)).map_err(JobError::Load),
            () = job.cancel.cancelled() => Err(JobError::Aborted),
        }
    }

    async fn read(&self, remote: &Remote, params: &KvTransferParams, ours: &[BlockId]) -> Result<(), LoadError> {
        let groups = params.remote_block_ids.groups();
        let [theirs] = groups else { return Err(LoadError::Groups(groups.len())) };
        let peer = self.peers.get(remote).await?;
        for done in load::pull(&self.arena, &peer, ours, theirs.ids(), &params.remote_request_id).await? {
            self.stats.transfer(&done);
        }
        Ok(())
    }

    /// Hands the blocks on after a good read; after a bad one frees them, or keeps them out of use for ever.
    async fn settle(
        &self,
        remote: &Remote,
        result: Result<(), LoadError>,
        holding: Holding,
    ) -> Result<Holding, LoadError> {
        match result {
            Ok(()) => Ok(holding),
            Err(error) => {
                self.stats.failed_transfers.add(1);
                if error.memory_is_quiet() {
                    holding.free();
                } else {
                    holding.quarantine();
                }
                if matches!(error, LoadError::Fabric(_) | LoadError::Deadline(_)) {
                    self.peers.forget(&remote.engine).await;
                }
                Err(error)
            }
        }
    }

    /// Tells the prefill engine that an aborted job's blocks will not be read.
    pub(super) async fn tell_unread(&self, job: &Job) {
        let Some((remote, params)) = job.kv.remote() else { return };
        if let Err(error) = self.peers.done_without_reading(&remote, &params.remote_request_id).await {
            tracing::warn!(request_id = %job.id, %error, "the prefill engine could not be told about an aborted request");
            self.stats.failed_notifications.add(1);
        }
    }
}

//! A job's way through the engine.

use nixl::bulk;

use super::*;
use crate::heartbeat::Heartbeat;
use crate::request_log::Line;
use crate::scheduler::Holding;
use crate::words::Voice;

/// What a fault leaves in the place of KV.
const OVERWRITTEN: u8 = 0x5a;

/// How a job went, for the log.
#[derive(Default)]
struct Trace {
    foreign_bytes: Option<u64>,
}

impl Engine {
    /// Runs a job to its end and says so on `out`; a receiver that is gone aborts it. `counted` has counted it since it was
    /// given to this rank, so that the next one sees it when it looks for the rank with the least to do.
    pub async fn run(self: Arc<Self>, job: Job, counted: Counted, out: Outputs) {
        let at_us = wall::unix_micros();
        let mut trace = Trace::default();
        let result = self.serve(&job, counted, &out, &mut trace).await;
        let remote = job.kv.remote();
        self.log.write(&Line {
            at_us,
            dp_rank: self.rank.0,
            engine_id: self.id.as_str(),
            request_id: job.id.as_str(),
            kind: job.kv.word(),
            remote_engine_id: remote.as_ref().map(|(remote, _)| remote.engine.as_str()),
            remote_request_id: remote.as_ref().map(|(_, params)| params.remote_request_id.as_str()),
            outcome: result.as_ref().map_or_else(JobError::outcome, |_| "ok"),
            reused_bytes: trace.foreign_bytes,
        });
        let last = match result {
            Ok(params) => {
                self.stats.succeeded.add(1);
                Output::Done(params)
            }
            Err(error) => {
                if !matches!(error, JobError::Aborted) {
                    tracing::warn!(request_id = %job.id, dp_rank = %self.rank, error = %chain(&error), "a request failed");
                }
                Output::Failed(error)
            }
        };
        // Nobody may be there to hear it; then nothing is lost.
        drop(out.send((job.index, last)).await);
    }

    async fn serve(
        self: &Arc<Self>,
        job: &Job,
        mut counted: Counted,
        out: &Outputs,
        trace: &mut Trace,
    ) -> Result<Option<Value>, JobError> {
        let geometry = *self.arena.geometry();
        let prompt = Prompt::new(self.pace.seed, &job.tokens, geometry.block_size());
        let heartbeat = self.heartbeat(job);
        let new_tokens = usize::try_from(job.most_new()).unwrap_or(usize::MAX);
        let total = geometry.blocks_for(job.tokens.len().saturating_add(new_tokens - 1));
        let Admitted { allocation, holding } = self.admit(job, &prompt, total).await?;
        let cached = allocation.cached;
        self.count_prefix(job, cached, geometry.block_size());
        let missing = prompt.pages(&allocation.blocks, cached);
        let holding = match &job.kv {
            KvRole::FromPrefill(params) => self.load(job, params, &missing, holding).await?,
            KvRole::Plain | KvRole::ForDecode => {
                self.prefill(job, &mut counted, missing).await?;
                holding
            }
        };
        drop(heartbeat);
        counted.run();
        let full = prompt.full.max(cached);
        self.remember(allocation.blocks.get(..full), prompt.keys.get(..full)).await?;
        let voice = self.listen(job, prompt.pages(&allocation.blocks, 0), trace).await?;
        let generated = self.speak(job, voice, out).await?;
        match &job.kv {
            KvRole::ForDecode => Ok(Some(self.keep(job, generated, cached, allocation.blocks, holding).await)),
            KvRole::Plain | KvRole::FromPrefill(_) => {
                holding.free();
                Ok(None)
            }
        }
    }

    fn heartbeat(&self, job: &Job) -> Option<Heartbeat> {
        let (remote, params) = job.kv.remote()?;
        let (peers, stats) = (Arc::clone(&self.peers), Arc::clone(&self.stats));
        let request = params.remote_request_id.clone();
        Some(Heartbeat::start(&self.tasks, peers, stats, remote, request, self.pace.kv_lease))
    }

    /// Waits for the job's turn. One that is aborted before it tells the prefill engine that nobody will read.
    async fn admit(&self, job: &Job, prompt: &Prompt, total: usize) -> Result<Admitted, JobError> {
        let (reply, turn) = oneshot::channel();
        let keys = prompt.keys.get(..prompt.cacheable).unwrap_or_default().to_vec();
        let command = Command::Admit(Admit { keys, total, reply });
        let turn = async {
            self.commands.send(command).await.map_err(|_| JobError::Refused)?;
            turn.await.map_err(|_| JobError::Refused)
        };
        tokio::select! {
            admitted = turn => admitted,
            () = job.cancel.cancelled() => {
                self.tell_unread(job).await;
                Err(JobError::Aborted)
            }
        }
    }

    fn count_prefix(&self, job: &Job, cached: usize, block_size: usize) {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.stats.prompt_tokens.add(count(job.tokens.len()));
        self.stats.prefix_queries.add(count(job.tokens.len()));
        self.stats.prefix_hits.add(count(cached * block_size));
    }

    /// Computes the missing blocks, one job at a time, at the rank's pace.
    async fn prefill(&self, job: &Job, counted: &mut Counted, missing: Vec<Page>) -> Result<(), JobError> {
        let turn = tokio::select! {
            turn = self.compute.lock() => turn,
            () = job.cancel.cancelled() => return Err(JobError::Aborted),
        };
        counted.run();
        let started = tokio::time::Instant::now();
        let tokens = missing.len().saturating_mul(self.arena.geometry().block_size()).min(job.tokens.len());
        let arena = Arc::clone(&self.arena);
        let filled = bulk::over(arena.work(missing.len()), move || arena.fill(&missing)).await;
        filled.ok().and_then(Result::ok).ok_or(JobError::Compute)?;
        let paced = self.pace.prefill_tokens_per_s.map_or(Duration::ZERO, |per_s| {
            let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
            Duration::from_secs_f64(f64::from(tokens) / f64::from(per_s.max(1)))
        });
        tokio::select! {
            () = tokio::time::sleep_until(started + paced) => {}
            () = job.cancel.cancelled() => return Err(JobError::Aborted),
        }
        drop(turn);
        Ok(())
    }

    /// Tells the prefix cache about the prompt's full blocks, while this job still holds them.
    async fn remember(&self, blocks: Option<&[BlockId]>, keys: Option<&[BlockKey]>) -> Result<(), JobError> {
        let (Some(blocks), Some(keys)) = (blocks, keys) else { return Ok(()) };
        if keys.is_empty() {
            return Ok(());
        }
        let (done, heard) = oneshot::channel();
        let command = Command::Remember { blocks: blocks.to_vec(), keys: keys.to_vec(), done };
        self.commands.send(command).await.map_err(|_| JobError::Refused)?;
        heard.await.map_err(|_| JobError::Refused)
    }

    /// Reads every byte of the prompt's KV: the text follows from it.
    async fn listen(&self, job: &Job, pages: Vec<Page>, trace: &mut Trace) -> Result<Voice, JobError> {
        let arena = Arc::clone(&self.arena);
        let digest = bulk::over(arena.work(pages.len()), move || arena.digest(&pages)).await;
        let digest = digest.ok().and_then(Result::ok).ok_or(JobError::Compute)?;
        trace.foreign_bytes = Some(digest.foreign_bytes);
        Ok(Voice::new(&job.tokens, digest.value))
    }

    /// Generates; answers how many tokens the longest text has.
    async fn speak(&self, job: &Job, voice: Voice, out: &Outputs) -> Result<u32, JobError> {
        let most = job.most_new();
        let (length, reason) = match job.max_new {
            Some(_) => (most, "length"),
            None if voice.natural_length() <= most => (voice.natural_length(), "stop"),
            None => (most, "length"),
        };
        let started = tokio::time::Instant::now();
        for step in 0..length {
            let due = started + self.pace.time_per_token * step;
            tokio::select! {
                biased;
                () = job.cancel.cancelled() => return Err(JobError::Aborted),
                () = tokio::time::sleep_until(due), if due > started => {}
                () = std::future::ready(()), if due == started => {}
            }
            for choice in 0..job.choices {
                let finish = (step + 1 == length).then_some(reason);
                let token = Output::Token { choice, token: voice.token(choice, step), finish };
                out.send((job.index, token)).await.map_err(|_| JobError::Aborted)?;
            }
            self.stats.generation_tokens.add(u64::from(job.choices));
        }
        Ok(length)
    }

    /// Breaks the promise of a lease, as an engine with a fault would.
    fn overwrite(&self, after: Duration, blocks: Vec<BlockId>) {
        let arena = Arc::clone(&self.arena);
        self.tasks.spawn(async move {
            tokio::time::sleep(after).await;
            let work = arena.work(blocks.len());
            let overwritten = bulk::over(work, move || arena.overwrite(&blocks, OVERWRITTEN)).await;
            if !matches!(overwritten, Ok(Ok(()))) {
                tracing::error!("fault injection failed");
            }
        });
    }

    /// Pins the blocks for a decode engine and says where they are, in vLLM's words.
    async fn keep(&self, job: &Job, generated: u32, cached: usize, blocks: Vec<BlockId>, holding: Holding) -> Value {
        let geometry = self.arena.geometry();
        let computed = job.tokens.len().saturating_add(usize::try_from(generated).unwrap_or(0)).saturating_sub(1);
        let ids: Vec<u32> = blocks.iter().take(geometry.blocks_for(computed)).map(|block| block.0).collect();
        holding.pin(job.id.clone()).await;
        if let Some(after) = self.overwrite_pinned {
            self.overwrite(after, blocks);
        }
        json!({
            "do_remote_prefill": true,
            "do_remote_decode": false,
            "remote_block_ids": [ids],
            "remote_engine_id": self.id.as_str(),
            "remote_request_id": job.id.as_str(),
            "remote_host": self.endpoint.host,
            "remote_port": self.endpoint.port,
            "tp_size": geometry.tensor_parallel,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": computed,
            "remote_blocks_expiry_time": null,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": cached * geometry.block_size(),
        })
    }
}

/// An error with all its causes, for one log line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

//! Starts the jobs of a call, one per prompt, and collects what they say in one channel.

use std::sync::Arc;

use kv::ids::EngineRequestId;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;
use uuid::Uuid;

use super::Api;
use super::call::{Call, Endpoint};
use super::error::ApiError;
use crate::engine::{Engine, Job, Output};
use crate::stats::Counted;
use crate::words::Token;

/// Running jobs; dropping it aborts them, as a client does that goes away.
#[derive(Debug)]
pub(super) struct Generation {
    outputs: mpsc::Receiver<(u32, Output)>,
    open: usize,
    _abort: DropGuard,
}

/// What the jobs of a call say.
#[derive(Debug)]
pub(super) enum Said {
    /// A token of the text with this index in `choices`.
    Token {
        /// Index.
        index: u32,
        /// The token.
        token: Token,
        /// Set on the text's last token.
        finish: Option<&'static str>,
    },
    /// Prompt `prompt` is done.
    Done {
        /// Index of the prompt.
        prompt: u32,
        /// `kv_transfer_params` of a prefill.
        kv_transfer_params: Option<Value>,
    },
    /// All prompts are done.
    End,
}

/// Tokens that may wait for a slow client.
const BUFFERED: usize = 64;

/// Starts a job per prompt on one engine.
pub(super) fn start(api: &Api, engine: &Arc<Engine>, call: &Call) -> Generation {
    let (sender, outputs) = mpsc::channel(BUFFERED);
    let cancel = api.stop.child_token();
    for (index, prompt) in (0u32..).zip(&call.prompts) {
        let random = Uuid::new_v4().simple().to_string();
        let suffix = random.get(..8).unwrap_or("00000000");
        let id = match call.endpoint {
            Endpoint::Completions => format!("{}-{index}-{suffix}", call.id),
            Endpoint::Chat => format!("{}-{suffix}", call.id),
        };
        let counted = Counted::waiting(Arc::clone(&engine.stats));
        let job = Job {
            id: EngineRequestId::new(id),
            tokens: Arc::from(prompt.tokens.as_slice()),
            max_new: call.max_tokens,
            max_model_len: call.max_model_len,
            choices: call.n,
            index,
            kv: call.kv.clone(),
            cancel: cancel.clone(),
        };
        api.tasks.spawn(Arc::clone(engine).run(job, counted, sender.clone()));
    }
    Generation { outputs, open: call.prompts.len(), _abort: cancel.drop_guard() }
}

impl Generation {
    /// The next thing that is said.
    ///
    /// # Errors
    /// The first job that fails.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self, n: u32) -> Result<Said, ApiError> {
        if self.open == 0 {
            return Ok(Said::End);
        }
        match self.outputs.recv().await {
            Some((prompt, Output::Token { choice, token, finish })) => {
                Ok(Said::Token { index: prompt.saturating_mul(n).saturating_add(choice), token, finish })
            }
            Some((prompt, Output::Done(kv_transfer_params))) => {
                self.open -= 1;
                Ok(Said::Done { prompt, kv_transfer_params })
            }
            Some((_, Output::Failed(error))) => Err(error.into()),
            None => Err(crate::engine::JobError::Compute.into()),
        }
    }
}

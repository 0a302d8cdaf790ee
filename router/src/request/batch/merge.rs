//! The streams of several prompts as one: their events as they come, each choice with its prompt's number, one usage at the end.

use std::pin::Pin;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::{self, SelectAll, Stream, StreamExt};
use http_body_util::BodyExt;
use serde_json::Value;
use vllm_wire::body::{BodyError, merged_usage_chunk, prompt_part};
use vllm_wire::openai::error_in;

use super::Begun;
use crate::sse::{Splitter, TooLong};

/// Why the stream of all breaks off.
#[derive(Debug, thiserror::Error)]
enum MergeError {
    #[error("read the answer to prompt {prompt}")]
    Read {
        prompt: usize,
        #[source]
        source: axum::Error,
    },
    #[error("cut the answer to prompt {prompt} into events")]
    Event {
        prompt: usize,
        #[source]
        source: TooLong,
    },
    #[error("the answer to prompt {prompt} ends before its end was announced")]
    Torn { prompt: usize },
    #[error("read a chunk of the answer to prompt {prompt}")]
    Chunk {
        prompt: usize,
        #[source]
        source: BodyError,
    },
}

/// The data of one event of one prompt.
type Said = Result<(usize, String), MergeError>;
type Prompts = SelectAll<Pin<Box<dyn Stream<Item = Said> + Send>>>;

const DONE: &str = "[DONE]";

/// One prompt's events up to its `[DONE]`.
struct Prompt {
    number: usize,
    /// Its rank and transfer are held until its stream has ended.
    begun: Begun,
    splitter: Splitter,
    over: bool,
}

/// The body of all.
pub(super) fn merged_stream(begun: Vec<Begun>) -> Body {
    let prompts = begun.into_iter().enumerate().map(|(number, begun)| {
        let prompt = Prompt { number, begun, splitter: Splitter::default(), over: false };
        Box::pin(stream::unfold(prompt, next_said)) as Pin<Box<dyn Stream<Item = Said> + Send>>
    });
    let all = All { prompts: stream::select_all(prompts), id: None, usage: Vec::new(), last: None, over: false };
    Body::from_stream(stream::unfold(all, async |mut all| all.next().await.map(|next| (next, all))))
}

async fn next_said(mut prompt: Prompt) -> Option<(Said, Prompt)> {
    let number = prompt.number;
    loop {
        if prompt.over {
            return None;
        }
        if let Some(event) = prompt.splitter.next_event() {
            if event.data.trim() == DONE {
                return None;
            }
            return Some((Ok((number, event.data)), prompt));
        }
        let error = match prompt.begun.decoding.held.frame().await {
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                match prompt.splitter.push(&data) {
                    Ok(()) => continue,
                    Err(source) => MergeError::Event { prompt: number, source },
                }
            }
            Some(Err(source)) => MergeError::Read { prompt: number, source },
            None => MergeError::Torn { prompt: number },
        };
        prompt.over = true;
        return Some((Err(error), prompt));
    }
}

struct All {
    prompts: Prompts,
    /// That of whichever prompt spoke first.
    id: Option<String>,
    usage: Vec<Value>,
    /// A chunk that has usage only.
    last: Option<Vec<u8>>,
    over: bool,
}

impl All {
    async fn next(&mut self) -> Option<Result<Bytes, MergeError>> {
        while !self.over {
            let Some(said) = self.prompts.next().await else { return Some(self.end()) };
            match said.and_then(|(prompt, data)| self.event(prompt, &data)) {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(error) => {
                    self.stop();
                    return Some(Err(error));
                }
            }
        }
        None
    }

    /// The others are cancelled.
    fn stop(&mut self) {
        self.over = true;
        self.prompts.clear();
    }

    fn event(&mut self, prompt: usize, data: &str) -> Result<Option<Bytes>, MergeError> {
        if error_in(data.as_bytes()).is_some() {
            self.stop();
            return Ok(Some(format!("data: {data}\n\ndata: {DONE}\n\n").into()));
        }
        let chunk = |source| MergeError::Chunk { prompt, source };
        let part = prompt_part(data.as_bytes(), prompt, self.id.as_deref()).map_err(chunk)?;
        if self.id.is_none() {
            self.id = part.id;
        }
        match part.usage {
            Some(usage) if !part.has_choices => {
                self.usage.push(usage);
                self.last = Some(part.body);
                Ok(None)
            }
            _ => Ok(Some([&b"data: "[..], &part.body, b"\n\n"].concat().into())),
        }
    }

    fn end(&mut self) -> Result<Bytes, MergeError> {
        self.over = true;
        let mut end = Vec::new();
        if let Some(last) = self.last.take() {
            let chunk = |source| MergeError::Chunk { prompt: 0, source };
            let merged = merged_usage_chunk(&last, &self.usage).map_err(chunk)?;
            end.extend_from_slice(&[&b"data: "[..], &merged, b"\n\n"].concat());
        }
        end.extend_from_slice(format!("data: {DONE}\n\n").as_bytes());
        Ok(end.into())
    }
}

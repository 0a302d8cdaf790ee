//! Server-sent events of a call that streams: one per token, then the usage if asked for, then `[DONE]`.
//!
//! An error is an event, too, and `[DONE]` follows it: the status has long been sent.

use std::collections::{BTreeSet, VecDeque};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::answer::{echoed, head, into_map, prompt_ids, usage};
use super::call::{Call, Endpoint};
use super::error::ApiError;
use super::generate::{Generation, Said};

struct Events {
    call: Call,
    generation: Option<Generation>,
    ready: VecDeque<Bytes>,
    begun: BTreeSet<u32>,
    generated: usize,
}

/// The body of a streaming answer; dropping it aborts the jobs.
pub(super) fn events(call: Call, started: Result<Generation, ApiError>) -> Body {
    let mut ready = VecDeque::new();
    let generation = started.map_err(|error| ready.extend([event(&error.to_json()), done()])).ok();
    let events = Events { call, generation, ready, begun: BTreeSet::new(), generated: 0 };
    Body::from_stream(stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), events))
    }))
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let generation = self.generation.as_mut()?;
            match generation.next(self.call.n).await {
                Ok(Said::Token { index, token, finish }) => self.token(index, token.text, token.id, finish),
                Ok(Said::Done { .. }) => {}
                Ok(Said::End) => self.end(),
                Err(error) => {
                    self.ready.extend([event(&error.to_json()), done()]);
                    self.generation = None;
                }
            }
        }
    }

    fn token(&mut self, index: u32, text: &str, id: u32, finish: Option<&'static str>) {
        let first = self.begun.insert(index);
        self.generated += 1;
        let ids = if self.call.return_token_ids { json!([id]) } else { Value::Null };
        let mut chunk = head(&self.call, true);
        let choice = match self.call.endpoint {
            Endpoint::Completions => {
                let text = if first { format!("{}{text}", echoed(&self.call, index)) } else { text.to_owned() };
                let mut choice = into_map(json!({
                    "index": index, "text": text, "logprobs": null, "finish_reason": finish, "stop_reason": null,
                    "token_ids": ids,
                }));
                if first && self.call.return_token_ids {
                    choice.insert("prompt_token_ids".to_owned(), prompt_ids(&self.call, index));
                }
                Value::Object(choice)
            }
            Endpoint::Chat => {
                if first {
                    self.role(index);
                }
                json!({
                    "index": index, "delta": {"content": text}, "logprobs": null, "finish_reason": finish,
                    "stop_reason": null, "token_ids": ids,
                })
            }
        };
        chunk.insert("choices".to_owned(), json!([choice]));
        self.ready.push_back(event(&Value::Object(chunk)));
    }

    /// The event that opens a chat's text.
    fn role(&mut self, index: u32) {
        let mut chunk = head(&self.call, true);
        let delta = json!({"role": "assistant", "content": ""});
        let choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
        chunk.insert("choices".to_owned(), json!([choice]));
        if self.call.return_token_ids {
            chunk.insert("prompt_token_ids".to_owned(), prompt_ids(&self.call, index));
        }
        self.ready.push_back(event(&Value::Object(chunk)));
    }

    fn end(&mut self) {
        if self.call.include_usage {
            let mut chunk = head(&self.call, true);
            chunk.insert("choices".to_owned(), json!([]));
            chunk.insert("usage".to_owned(), usage(&self.call, self.generated));
            self.ready.push_back(event(&Value::Object(chunk)));
        }
        self.ready.push_back(done());
        self.generation = None;
    }
}

fn event(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

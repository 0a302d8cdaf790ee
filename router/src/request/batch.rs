//! Several prompts in one completions body: one prefill, transfer and decode for each, and one answer of all.
//!
//! A KV object is never for several prompts. The prompts run at the same time, each down its own failure ladder; when one fails
//! for good, so does the request, and the others are cancelled. The request counts as one among those in flight.

mod merge;

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use tokio::time::timeout;
use tracing::warn;
use vllm_wire::body::{PlainReason, RequestBody, merged_answer};

use crate::admission::Reserved;
use crate::choice::Ask;
use crate::engine::Decoding;
use crate::error::ApiError;
use crate::handoff::Claimed;
use crate::headers::Path;
use crate::metrics::Outcome;
use crate::pod_local::Prefillers;
use crate::relay::Held;
use crate::request::{Done, Job, LONG_BODY, bad_body, cut};
use crate::targets::Occupied;
use crate::trail::Trail;
use merge::merged_stream;

/// Bytes that all prompts' bodies together may repeat of what is not a prompt.
const MAX_REPEATED: usize = 1 << 20;
/// Longest answers, those to all prompts of a request together, that are not streamed.
const MAX_ANSWERS: usize = 16 << 20;
/// Memory for them is taken from the router's in steps of this many bytes.
const STEP: usize = 256 << 10;

/// One prompt's answer on its way.
pub(super) struct Begun {
    pub(super) decoding: Decoding,
    pub(super) seat: Occupied,
    #[expect(dead_code, reason = "held until dropped: then the sidecar is told that the decode leg has ended")]
    pub(super) claimed: Option<Claimed>,
    /// For an answer that is here whole.
    memory: Vec<Reserved>,
}

/// Why there is no answer of all.
enum Stop {
    /// An engine finds fault with the request.
    ClientError(Decoding),
    Failed(ApiError),
}

impl Job<'_> {
    /// Whether the body has several prompts that may run each by itself.
    pub(super) fn is_batch(&self) -> bool {
        let most = usize::try_from(self.shared.config.paths.max_batch_split).unwrap_or(usize::MAX);
        let prompts = self.body.prompts();
        !matches!(self.prefillers, Prefillers::Nobody)
            && self.body.inspected().plain_because == Some(PlainReason::SeveralPrompts)
            && prompts <= most
            && self.body.bytes_beside_prompts().saturating_mul(prompts) <= MAX_REPEATED
    }

    /// Runs every prompt, and makes one answer of theirs.
    pub(super) async fn batch(&mut self) -> Result<Done, ApiError> {
        let bodies = self.body.each_prompt().map_err(|error| bad_body(&error))?;
        let is_stream = self.body.inspected().stream;
        // Every prompt has its copy now; the memory of the whole is given back.
        if let Some(first) = bodies.first() {
            self.body = first.clone();
        }
        let mut trails: Vec<Trail> = bodies.iter().map(|_| self.trail.branch(self.shared.ids.next())).collect();
        let longest = MAX_ANSWERS.checked_div(bodies.len()).unwrap_or(MAX_ANSWERS);
        let longest = (!is_stream).then_some(longest);
        let runs = bodies.into_iter().zip(&mut trails).map(|(body, trail)| self.prompt(body, trail, longest));
        let outcome = try_join_all(runs).await;
        if trails.iter().all(|trail| trail.path == Path::Local)
            && let Some(first) = trails.first()
        {
            (self.trail.path, self.trail.local_because) = (Path::Local, first.local_because);
        }
        for trail in trails {
            self.trail.join(trail);
        }
        match outcome {
            Ok(begun) if is_stream => stream_of(begun),
            Ok(begun) => self.whole_of(begun).await,
            Err(Stop::ClientError(answer)) => Ok(Done::ClientError(answer)),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    /// Runs one prompt until its answer has begun or, when one of at most so many bytes is wanted whole, is here.
    async fn prompt(&self, body: RequestBody, trail: &mut Trail, whole: Option<usize>) -> Result<Begun, Stop> {
        let mut job = Job {
            shared: self.shared,
            id: Arc::clone(&trail.id),
            label: Arc::clone(&self.label),
            endpoint: self.endpoint,
            headers: Arc::clone(&self.headers),
            ask: Ask::new(&self.shared.policies, &self.headers, body.bytes(), &body.inspected().sketch),
            body,
            wish: self.wish,
            prefillers: self.prefillers.clone(),
            trail,
            blamed: Vec::new(),
            cached: Vec::new(),
        };
        job.trail.path = job.planned_path();
        let (decoding, seat, claimed) = match Box::pin(job.one()).await {
            Ok(Done::Begun { decoding, seat, claimed }) => (decoding, seat, claimed),
            Ok(Done::ClientError(answer)) => return Err(Stop::ClientError(answer)),
            Err(error) => return Err(Stop::Failed(error)),
        };
        let Some(longest) = whole else {
            return Ok(Begun { decoding, seat, claimed, memory: Vec::new() });
        };
        let Decoding { status, headers, held } = decoding;
        let (body, memory) = self.whole_answer(held, longest).await.map_err(Stop::Failed)?;
        // The decode leg has ended, and so has its use of the transfer.
        drop(claimed);
        let held = Held::unread(Body::from(body));
        Ok(Begun { decoding: Decoding { status, headers, held }, seat, claimed: None, memory })
    }

    /// An answer with the memory that it takes of the router's.
    async fn whole_answer(&self, mut held: Held, longest: usize) -> Result<(Bytes, Vec<Reserved>), ApiError> {
        let failed = |status, code, words: &str| ApiError::new(status, code, words, Outcome::Failed);
        let (mut answer, mut memory, mut taken) = (BytesMut::new(), Vec::new(), 0);
        loop {
            let data = match timeout(self.shared.config.deadlines.idle, held.frame()).await {
                Ok(None) => return Ok((answer.freeze(), memory)),
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) => {
                    self.span().in_scope(|| {
                        warn!(error = &error as &dyn std::error::Error, "the answer to a prompt breaks off");
                    });
                    let words = "the decode engine broke off in the middle of its answer to a prompt";
                    return Err(failed(StatusCode::BAD_GATEWAY, "decode_broken", words));
                }
                Err(_) => {
                    let words = "the decode engine fell silent in the middle of its answer to a prompt";
                    return Err(failed(StatusCode::GATEWAY_TIMEOUT, "decode_timeout", words));
                }
            };
            let length = answer.len().saturating_add(data.len());
            if length > longest {
                let words = "the answers to the prompts are longer than the router merges; ask for a stream, or prompt by prompt";
                return Err(failed(StatusCode::BAD_GATEWAY, "answer_too_large", words));
            }
            while taken < length {
                memory.push(self.shared.admission.reserve(STEP as u64)?);
                taken = taken.saturating_add(STEP);
            }
            answer.extend_from_slice(&data);
        }
    }

    async fn whole_of(&self, begun: Vec<Begun>) -> Result<Done, ApiError> {
        let (mut first, mut kept) = (None, Vec::new());
        let mut answers = Vec::with_capacity(begun.len());
        for Begun { decoding, seat, memory, .. } in begun {
            let body = decoding.held.collect().await.map_err(|error| no_completion(&error))?;
            answers.push(body.to_bytes());
            kept.push(memory);
            first.get_or_insert((decoding.status, decoding.headers, seat));
        }
        // Merging long answers takes a while, in which others' requests would wait.
        let merged = if answers.iter().map(Bytes::len).sum::<usize>() < LONG_BODY {
            merged_answer(&answers)
        } else {
            self.shared.tasks.spawn_blocking(move || merged_answer(&answers)).await.map_err(|_| cut())?
        };
        drop(kept);
        let body = merged.map_err(|error| no_completion(&error))?;
        let (status, mut headers, seat) = first.ok_or_else(|| no_completion(&std::fmt::Error))?;
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let held = Held::unread(Body::from(body));
        Ok(Done::Begun { decoding: Decoding { status, headers, held }, seat, claimed: None })
    }
}

fn no_completion(error: &(dyn std::error::Error + 'static)) -> ApiError {
    warn!(error, "the answers to several prompts do not go together");
    let words = "a decode engine answers a prompt with something that is no completion";
    ApiError::new(StatusCode::BAD_GATEWAY, "decode_answer_invalid", words, Outcome::Failed)
}

fn stream_of(mut begun: Vec<Begun>) -> Result<Done, ApiError> {
    // What an engine streams, as it says itself; a prompt that was answered in another way cannot be merged.
    if begun.iter().any(|begun| !begun.decoding.held.is_stream()) {
        return Err(no_completion(&std::fmt::Error));
    }
    let first = begun.first_mut().ok_or_else(|| no_completion(&std::fmt::Error))?;
    let (status, headers) = (first.decoding.status, std::mem::take(&mut first.decoding.headers));
    let seat = Occupied::none();
    let held = Held::events(merged_stream(begun));
    Ok(Done::Begun { decoding: Decoding { status, headers, held }, seat, claimed: None })
}

impl Trail {
    /// The way of one prompt of this request.
    fn branch(&self, id: Arc<str>) -> Self {
        let mut branch = Self::new(id, self.client_id.clone(), self.endpoint);
        branch.arrived = self.arrived;
        branch.trace = self.trace.clone();
        branch
    }

    /// A prompt's way becomes part of the request's.
    fn join(&mut self, branch: Self) {
        if branch.path == Path::Fallback {
            self.path = Path::Fallback;
        }
        self.add(branch);
    }
}

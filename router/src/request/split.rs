//! A request split into prefill, transfer and decode, with the failure ladder around it.

use std::sync::Arc;

use http::StatusCode;
use kv::ids::{AttemptId, LocalRank};
use tokio::time::{Instant, sleep};
use tracing::warn;
use vllm_wire::body::{AnswerError, PrefillAnswer};
use vllm_wire::params::RawParams;

use crate::choice::Avoid;
use crate::config::{FallbackKind, Gate};
use crate::engine::{Answer, Call, LegError};
use crate::error::ApiError;
use crate::faults::Faults;
use crate::handoff::{Claimed, Handoffs, Landed, NotHeld, PinnedBlocks};
use crate::headers::Path;
use crate::ladder::{Ladder, Next, Retry};
use crate::metrics::Outcome;
use crate::request::whole::leg_failed;
use crate::request::{Done, Job, not_ready};
use crate::sidecar::{HandleReport, SidecarError, Traced, TransferAsk};
use crate::targets::{Board, Fault, Occupied, Side, Target};
use crate::ticket::{Asked, DecodeTicket, NotCovered, Ungated};
use crate::trail::{Failed, Leg};

/// A prefill that is done.
struct Prefilled {
    target: Target,
    seat: Occupied,
    sent_at: Instant,
    answer: PrefillAnswer,
    /// `None` with the direct gate, where D itself tells P.
    blocks: Option<PinnedBlocks>,
}

/// Where an attempt begins; its decode rank is chosen in either case.
enum Start {
    Anew { prefill: Target, decode: Target },
    With { prefilled: Box<Prefilled>, decode: Target },
}

/// A failed attempt.
struct Failure {
    error: AttemptError,
    prefill: Target,
    decode: Target,
    /// A prefill that another transfer may still use.
    prefilled: Option<Box<Prefilled>>,
}

#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("prefill")]
    Prefill(#[source] LegError),
    #[error("transfer")]
    Transfer(#[source] SidecarError),
    #[error("redeem the receipt")]
    Receipt(#[source] NotCovered),
    #[error("decode")]
    Decode(#[source] LegError),
    #[error("trust the decode")]
    Staging(#[source] NotHeld),
}

impl AttemptError {
    fn retry(&self) -> Retry {
        match self {
            Self::Prefill(error) | Self::Decode(error) => error.retry(),
            Self::Transfer(error) => error.retry(),
            Self::Receipt(_) => Retry::Never,
            Self::Staging(_) => Retry::NewPrefill,
        }
    }

    /// The leg that failed and what happened, for metrics: both from short lists.
    fn fault(&self) -> (Leg, &'static str) {
        match self {
            Self::Prefill(error) => (Leg::Prefill, error.what()),
            Self::Transfer(error) => (Leg::Transfer, error.what()),
            Self::Receipt(_) => (Leg::Transfer, "receipt_invalid"),
            Self::Decode(error) => (Leg::Decode, error.what()),
            Self::Staging(_) => (Leg::Decode, "staging_freed"),
        }
    }

    /// For the client: a stable code and words without addresses.
    fn public(&self) -> ApiError {
        let (status, code, message) = match self {
            Self::Prefill(error) => return leg_failed("prefill", error),
            Self::Decode(error) => return leg_failed("decode", error),
            Self::Transfer(error) => {
                (transfer_status(error), error.code().to_owned(), format!("the KV transfer failed: {}", error.code()))
            }
            Self::Receipt(error) => (StatusCode::BAD_GATEWAY, error.code().to_owned(), error.to_string()),
            Self::Staging(_) => {
                let message = "the decode's KV cannot be shown to have been its own".to_owned();
                (StatusCode::BAD_GATEWAY, "staging_freed".to_owned(), message)
            }
        };
        ApiError::new(status, code, message, Outcome::Failed)
    }
}

/// Statuses that tell the client something go through; the others are about parties that it does not know.
fn transfer_status(error: &SidecarError) -> StatusCode {
    match error {
        SidecarError::Problem { status, .. } => match *status {
            through @ (StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT) => through,
            _ => StatusCode::BAD_GATEWAY,
        },
        SidecarError::Upstream(error) if error.is_late() => StatusCode::GATEWAY_TIMEOUT,
        SidecarError::Stale { .. } => StatusCode::GATEWAY_TIMEOUT,
        SidecarError::Upstream(_)
        | SidecarError::Answer { .. }
        | SidecarError::Request(_)
        | SidecarError::Abandoned => StatusCode::BAD_GATEWAY,
    }
}

impl Job<'_> {
    /// Prefill here, decode there; down the ladder while it fails.
    pub(super) async fn split(&mut self) -> Result<Done, ApiError> {
        let mut ladder = Ladder::new(self.shared.config.failure.max_attempts);
        let mut avoid = Avoid::default();
        self.trail.choosing();
        let Some((prefill, decode)) = self.terms(&avoid).pair(&self.shared.board) else {
            let error = not_ready(&self.shared.board, &[Side::Prefill, Side::Decode], &self.prefillers);
            return self.fall_back(error).await;
        };
        let mut start = Start::Anew { prefill, decode };
        loop {
            let failure = match self.attempt(start).await {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let planned = ladder.step(failure.error.retry(), failure.prefilled.is_some(), &self.shared.retries);
            let Failure { error, prefill, decode, prefilled } = *failure;
            let (leg, fault) = error.fault();
            blame(&mut avoid, &error, &prefill, &decode, &self.shared.board);
            report(&error, &prefill, &decode);
            self.failed_on(if leg == Leg::Prefill { &prefill } else { &decode });
            let names = (prefill.id(), decode.id());
            let again = match (planned, prefilled) {
                (Next::GiveUp | Next::BudgetSpent, _) => None,
                (Next::SameTransfer, Some(prefilled)) => Some(Start::With { prefilled, decode }),
                (Next::OtherDecode, Some(prefilled)) => {
                    let other = self.terms(&avoid).decode_for(&self.shared.board, &prefilled.target);
                    match other {
                        Some(decode) => Some(Start::With { prefilled, decode }),
                        None => self.anew(&avoid),
                    }
                }
                (Next::NewPrefill, _) | (Next::SameTransfer | Next::OtherDecode, None) => self.anew(&avoid),
            };
            let next = match (&again, planned) {
                (None, Next::BudgetSpent) => Next::BudgetSpent,
                (None, _) => Next::GiveUp,
                (Some(Start::Anew { .. }), _) => Next::NewPrefill,
                (Some(Start::With { .. }), next) => next,
            };
            self.span().in_scope(|| {
                let error = &error as &dyn std::error::Error;
                warn!(prefill = %names.0, decode = %names.1, next = next.as_str(), error, "attempt failed");
            });
            self.failed(Failed { leg, fault, code: error.public().code, next }, &error);
            self.trail.choosing();
            start = match again {
                Some(start) => start,
                None => return self.fall_back(error.public()).await,
            };
        }
    }

    fn anew(&self, avoid: &Avoid) -> Option<Start> {
        let (prefill, decode) = self.terms(avoid).pair(&self.shared.board)?;
        Some(Start::Anew { prefill, decode })
    }

    async fn fall_back(&mut self, error: ApiError) -> Result<Done, ApiError> {
        match self.shared.config.failure.fallback {
            FallbackKind::Off => Err(error),
            FallbackKind::LocalPrefill => {
                self.trail.path = Path::Fallback;
                self.whole().await
            }
        }
    }

    async fn attempt(&mut self, start: Start) -> Result<Done, Box<Failure>> {
        match &start {
            Start::Anew { prefill, decode } => self.leave_alone(&[prefill, decode]).await,
            Start::With { decode, .. } => self.leave_alone(&[decode]).await,
        }
        let call = self.next_call();
        let (prefilled, decode, seat) = match start {
            Start::With { prefilled, decode } => {
                let seat = decode.occupy();
                self.trail.prefill_on(&prefilled.target);
                (*prefilled, decode, seat)
            }
            Start::Anew { prefill, decode } => {
                let seat = decode.occupy();
                self.trail.prefill_on(&prefill);
                let prefilled = self.prefill(&prefill, &call).await;
                if prefilled.is_ok() {
                    prefill.worked();
                }
                match prefilled {
                    Ok(Answer::Given(prefilled)) => (prefilled, decode, seat),
                    Ok(Answer::ClientError(answer)) => return Ok(Done::ClientError(answer)),
                    Err(error) => {
                        let error = AttemptError::Prefill(error);
                        return Err(Box::new(Failure { error, prefill, decode, prefilled: None }));
                    }
                }
            }
        };
        self.trail.decode_on(&decode);
        let prefill = prefilled.target.clone();
        let (ticket, mut claimed) = match self.ticket(prefilled, &decode, &call).await {
            Ok(admitted) => admitted,
            Err((error, prefilled)) => return Err(Box::new(Failure { error, prefill, decode, prefilled })),
        };
        self.trail.begin(Leg::Decode);
        let decoding = self.shared.engines.decode(ticket, &call, &self.body);
        let answered = match &mut claimed {
            Some(claimed) => claimed.during(decoding).await,
            None => decoding.await,
        };
        match answered {
            Ok(Answer::Given(decoding)) => {
                if let Some(claimed) = &claimed
                    && let Err(error) = claimed.was_held().await
                {
                    let error = AttemptError::Staging(error);
                    return Err(Box::new(Failure { error, prefill, decode, prefilled: None }));
                }
                decode.worked();
                self.trail.end(Leg::Decode);
                Ok(Done::Begun { decoding, seat, claimed })
            }
            Ok(Answer::ClientError(answer)) => {
                decode.worked();
                Ok(Done::ClientError(answer))
            }
            Err(error) => {
                let error = AttemptError::Decode(error);
                Err(Box::new(Failure { error, prefill, decode, prefilled: None }))
            }
        }
    }

    async fn prefill(&mut self, target: &Target, call: &Call) -> Result<Answer<Prefilled>, LegError> {
        let body = self.body.for_prefill();
        let seat = target.occupy();
        let sent_at = Instant::now();
        self.trail.begin(Leg::Prefill);
        let answer = match self.shared.engines.prefill(target, call, body).await? {
            Answer::Given(answer) => answer,
            Answer::ClientError(answer) => return Ok(Answer::ClientError(answer)),
        };
        if let Some(ids) = &answer.prompt_token_ids {
            self.shared.policies.learn(&self.ask, || ids.to_vec());
        }
        let answer = self.without_own_hits(target, answer);
        let age = sent_at.elapsed();
        self.trail.end(Leg::Prefill);
        let blocks = target.pod.sidecar.as_ref().map(|sidecar| {
            let report = HandleReport {
                rank: target.rank,
                engine: answer.params.remote_engine_id.clone(),
                request: answer.params.remote_request_id.clone(),
                params: answer.raw_params.clone(),
                lease: self.shared.config.deadlines.kv_lease,
                age,
            };
            self.handoffs(call, Leg::Prefill).pinned(sidecar, report)
        });
        // Blocks that cannot be moved are pinned all the same: what is returned here releases them.
        answer.params.check_supported().map_err(AnswerError::from)?;
        Ok(Answer::Given(Prefilled { target: target.clone(), seat, sent_at, answer, blocks }))
    }

    /// D reports P's prefix hits as the request's `cached_tokens`. What an earlier try of the same request has left in P's cache is none.
    fn without_own_hits(&mut self, target: &Target, mut answer: PrefillAnswer) -> PrefillAnswer {
        const HITS: &str = "remote_prefill_cached_tokens";
        if let Some(found) = answer.params.extra.get(HITS).and_then(serde_json::Value::as_u64) {
            match self.cached.iter().find(|(rank, _)| *rank == target.id()) {
                Some((_, first)) if *first < found => answer.raw_params = answer.raw_params.with_number(HITS, *first),
                Some(_) => {}
                None => self.cached.push((target.id(), found)),
            }
        }
        answer
    }

    /// Past the gate: with a receipt, or with the proof that none is wanted. An error brings the prefill back if it is still good.
    async fn ticket(
        &mut self,
        prefilled: Prefilled,
        decode: &Target,
        call: &Call,
    ) -> Result<(DecodeTicket, Option<Claimed>), (AttemptError, Option<Box<Prefilled>>)> {
        let faults = &self.shared.config.failure.faults;
        if let Gate::Direct(proof) = self.shared.config.choice.gate {
            hold_back(faults).await;
            let params = self.with_tokens(prefilled.answer.raw_params.clone(), &prefilled.answer);
            return Ok((DecodeTicket::without_receipt(Ungated::Direct(proof), decode.clone(), params), None));
        }
        let (Some(blocks), Some(sidecar)) = (prefilled.blocks, decode.pod.sidecar.clone()) else {
            return Err((AttemptError::Transfer(SidecarError::Abandoned), None));
        };
        let Prefilled { target, seat, sent_at, answer, .. } = prefilled;
        let ask = TransferAsk {
            sidecar,
            asked: Asked {
                attempt: AttemptId::new(call.id()),
                pod: decode.pod.id,
                rank: decode.rank,
                source_engine: answer.params.remote_engine_id.clone(),
            },
            label: Arc::clone(&self.label),
            params: answer.raw_params.clone(),
            deadline: self.shared.config.deadlines.transfer,
            lease: self.shared.config.deadlines.kv_lease,
            prefill_done_age: sent_at.elapsed(),
            source_sidecar: target.pod.sidecar.clone(),
        };
        if let Some(proof) = faults.skip_gate() {
            let handoffs = self.handoffs(call, Leg::Transfer);
            self.shared.tasks.spawn(async move { drop(handoffs.pull(ask, blocks).await) });
            let params = self.with_tokens(answer.raw_params.clone(), &answer);
            return Ok((DecodeTicket::without_receipt(Ungated::Fault(proof), decode.clone(), params), None));
        }
        self.trail.begin(Leg::Transfer);
        let Landed { mut receipt, mut claimed } = match self.handoffs(call, Leg::Transfer).pull(ask, blocks).await {
            Ok(landed) => landed,
            Err(failed) => {
                let blocks = failed.blocks;
                let prefilled =
                    blocks.map(|blocks| Box::new(Prefilled { target, seat, sent_at, answer, blocks: Some(blocks) }));
                return Err((AttemptError::Transfer(failed.error), prefilled));
            }
        };
        self.trail.landed(receipt.transfer.clone());
        receipt.params = self.with_tokens(receipt.params, &answer);
        let aim = if faults.wrong_rank() {
            neighbour(decode, self.shared.config.targets.decode_ranks)
        } else {
            decode.clone()
        };
        let ticket = DecodeTicket::from_receipt(&receipt, aim).map_err(|error| (AttemptError::Receipt(error), None))?;
        self.shared.metrics.receipt();
        claimed.during(hold_back(faults)).await;
        Ok((ticket, Some(claimed)))
    }

    /// Towards sidecars for this attempt's sake.
    fn handoffs(&self, call: &Call, leg: Leg) -> Handoffs {
        let parent = call.trace.and_then(|trace| trace.header(leg));
        self.shared.handoffs.of(Traced::new(&call.id, &self.headers, parent))
    }

    /// A text chat decodes the very tokens that were prefilled.
    fn with_tokens(&self, params: RawParams, answer: &PrefillAnswer) -> RawParams {
        match &answer.prompt_token_ids {
            Some(ids) if self.body.inspected().text_only_chat => params.with_token_ids(ids),
            Some(_) | None => params,
        }
    }
}

/// The delay-decode control.
async fn hold_back(faults: &Faults) {
    if let Some(wait) = faults.delay_decode() {
        sleep(wait).await;
    }
}

/// Whom to leave out of the next choice.
fn blame(avoid: &mut Avoid, error: &AttemptError, prefill: &Target, decode: &Target, board: &Board) {
    match error {
        AttemptError::Prefill(_) => avoid.unlucky(prefill),
        AttemptError::Decode(_) | AttemptError::Receipt(_) | AttemptError::Staging(_) => avoid.unlucky(decode),
        AttemptError::Transfer(error) => match error.retry() {
            Retry::OtherTarget if error.code() == "request_exceeds_staging" => avoid.too_small(&board.fleet(), decode),
            Retry::OtherTarget => avoid.unfit(decode),
            // The sidecar could not get the blocks from P, or its answer was lost.
            Retry::NewPrefill if error.may_be_running() => avoid.unlucky(decode),
            Retry::NewPrefill => avoid.unlucky(prefill),
            Retry::SameTarget | Retry::Never => avoid.unlucky(decode),
        },
    }
}

/// What a failed attempt says to the breakers.
fn report(error: &AttemptError, prefill: &Target, decode: &Target) {
    match error {
        AttemptError::Prefill(error) => error.fault().into_iter().for_each(|fault| prefill.failed(fault)),
        AttemptError::Decode(error) => error.fault().into_iter().for_each(|fault| decode.failed(fault)),
        AttemptError::Receipt(_) | AttemptError::Staging(_) => decode.failed(Fault::Failed),
        AttemptError::Transfer(SidecarError::Upstream(error)) if error.never_sent() => {
            decode.failed(Fault::Unreachable)
        }
        AttemptError::Transfer(
            SidecarError::Upstream(_) | SidecarError::Answer { .. } | SidecarError::Stale { .. },
        ) => decode.failed(Fault::Failed),
        AttemptError::Transfer(SidecarError::Abandoned | SidecarError::Request(_)) => {}
        AttemptError::Transfer(SidecarError::Problem { retry, status, .. }) => match retry {
            // P's sidecar or engine could not be read.
            Retry::NewPrefill => prefill.failed(Fault::Failed),
            Retry::SameTarget => decode.failed(Fault::Failed),
            Retry::OtherTarget if *status == StatusCode::GATEWAY_TIMEOUT => decode.failed(Fault::Failed),
            // No room, not ready, or not for this request: it says so itself, and in its states too.
            Retry::OtherTarget | Retry::Never => {}
        },
    }
}

/// The rank after a target's, for the wrong-rank control.
fn neighbour(target: &Target, ranks: u16) -> Target {
    let local = target.local.0.saturating_add(1).checked_rem(ranks).unwrap_or(0);
    let first = target.rank.0.saturating_sub(target.local.0);
    let local = LocalRank(local);
    Target { local, rank: local.global(first), ..target.clone() }
}

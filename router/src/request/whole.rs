//! A request that one decode engine serves by itself.

use http::StatusCode;
use tracing::warn;

use crate::choice::Avoid;
use crate::engine::{Answer, LegError};
use crate::error::ApiError;
use crate::ladder::{Ladder, Next};
use crate::metrics::Outcome;
use crate::request::{Done, Job, not_ready};
use crate::targets::Side;
use crate::trail::{Failed, Leg};

impl Job<'_> {
    /// Sends the request whole to a decode engine, to another one while that fails.
    pub(super) async fn whole(&mut self) -> Result<Done, ApiError> {
        // As a fallback it gets what splitting has left of the tries, and one in any case.
        let mut ladder = Ladder::new(self.shared.config.failure.max_attempts.saturating_sub(self.trail.attempts));
        let mut avoid = Avoid::default();
        loop {
            self.trail.choosing();
            let Some(target) = self.terms(&avoid).alone(&self.shared.board) else {
                return Err(not_ready(&self.shared.board, &[Side::Decode], &self.prefillers));
            };
            self.leave_alone(&[&target]).await;
            let seat = target.occupy();
            let call = self.next_call();
            self.trail.decode_on(&target);
            self.trail.begin(Leg::Decode);
            let error = match self.shared.engines.whole(&target, &call, &self.body).await {
                Ok(answer) => {
                    target.worked();
                    self.trail.end(Leg::Decode);
                    return Ok(match answer {
                        Answer::Given(decoding) => Done::Begun { decoding, seat, claimed: None },
                        Answer::ClientError(answer) => Done::ClientError(answer),
                    });
                }
                Err(error) => error,
            };
            if let Some(fault) = error.fault() {
                target.failed(fault);
            }
            let next = ladder.step(error.retry(), false, &self.shared.retries);
            self.span().in_scope(|| {
                let error = &error as &dyn std::error::Error;
                warn!(decode = %target.id(), error, next = next.as_str(), "attempt failed");
            });
            let public = leg_failed("decode", &error);
            let failed = Failed { leg: Leg::Decode, fault: error.what(), code: public.code.clone(), next };
            self.failed(failed, &error);
            if matches!(next, Next::GiveUp | Next::BudgetSpent) {
                return Err(public);
            }
            avoid.unlucky(&target);
            self.failed_on(&target);
        }
    }
}

/// A failed leg for the client.
pub(super) fn leg_failed(side: &'static str, error: &LegError) -> ApiError {
    let what = error.what();
    if let LegError::Overloaded { status, retry_after } = error {
        let message = format!("the {side} engines have no room for the request");
        let error = ApiError::new(*status, format!("{side}_{what}"), message, Outcome::Failed);
        return ApiError { retry_after: retry_after.unwrap_or(error.retry_after), ..error };
    }
    let (status, words) = match what {
        "timeout" => (StatusCode::GATEWAY_TIMEOUT, "does not answer in time"),
        "unreachable" => (StatusCode::BAD_GATEWAY, "cannot be reached"),
        "no_kv" => (StatusCode::BAD_GATEWAY, "keeps no KV for a decode engine (is its NIXL connector on?)"),
        "answer_invalid" => (StatusCode::BAD_GATEWAY, "answers something that cannot be used"),
        _ => (StatusCode::BAD_GATEWAY, "fails"),
    };
    ApiError::new(status, format!("{side}_{what}"), format!("the {side} engine {words}"), Outcome::Failed)
}

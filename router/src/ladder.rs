//! What to do after a failed attempt: same transfer again → another decode rank → new prefill → give up. The ladder is pure;
//! [`RetryBudget`] bounds the steps of all requests together, [`wait`] says how long a rank is left alone before its second try.

mod backoff;
mod budget;

pub(crate) use backoff::wait;
pub(crate) use budget::RetryBudget;

use tokio::time::Instant;

/// What the side that failed says may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Nothing would.
    Never,
    /// The same transfer again.
    SameTarget,
    /// Another decode rank, with the same prefill.
    OtherTarget,
    /// A new prefill.
    NewPrefill,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Next {
    SameTransfer,
    OtherDecode,
    NewPrefill,
    GiveUp,
    /// A step would have been left, but all requests together have had their share of them.
    BudgetSpent,
}

impl Next {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::SameTransfer => "same_transfer",
            Self::OtherDecode => "other_decode",
            Self::NewPrefill => "new_prefill",
            Self::GiveUp => "give_up",
            Self::BudgetSpent => "budget_spent",
        }
    }
}

/// One request's way down the ladder; each step is an attempt, and their number is bounded.
#[derive(Clone, Debug)]
pub(crate) struct Ladder {
    left: u32,
    same_tried: bool,
}

impl Ladder {
    /// A request that may be tried `attempts` times in all.
    pub(crate) fn new(attempts: u32) -> Self {
        Self { left: attempts.saturating_sub(1), same_tried: false }
    }

    /// The step after a failure. `prefill_held`: the prefill's blocks are still P's and no transfer for them can be running.
    pub(crate) fn after(&mut self, retry: Retry, prefill_held: bool) -> Next {
        let Some(left) = self.left.checked_sub(1) else { return Next::GiveUp };
        let next = match (retry, prefill_held) {
            (Retry::Never, _) => return Next::GiveUp,
            (Retry::SameTarget, true) if !self.same_tried => Next::SameTransfer,
            (Retry::SameTarget | Retry::OtherTarget, true) => Next::OtherDecode,
            (Retry::NewPrefill, _) | (Retry::SameTarget | Retry::OtherTarget, false) => Next::NewPrefill,
        };
        self.left = left;
        self.same_tried = matches!(next, Next::SameTransfer);
        next
    }

    /// The same, within the budget of all requests.
    pub(crate) fn step(&mut self, retry: Retry, prefill_held: bool, budget: &RetryBudget) -> Next {
        let next = self.after(retry, prefill_held);
        if next == Next::GiveUp || budget.take(Instant::now()) { next } else { Next::BudgetSpent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_transfer_goes_down_one_step_at_a_time() {
        let mut ladder = Ladder::new(5);
        assert_eq!(ladder.after(Retry::SameTarget, true), Next::SameTransfer);
        assert_eq!(ladder.after(Retry::SameTarget, true), Next::OtherDecode);
        assert_eq!(ladder.after(Retry::SameTarget, true), Next::SameTransfer, "the other rank gets its second try too");
        assert_eq!(ladder.after(Retry::NewPrefill, true), Next::NewPrefill);
        assert_eq!(ladder.after(Retry::SameTarget, true), Next::GiveUp, "five attempts were allowed");
    }

    #[test]
    fn without_a_prefill_in_hand_only_a_new_one_helps() {
        for retry in [Retry::SameTarget, Retry::OtherTarget, Retry::NewPrefill] {
            assert_eq!(Ladder::new(2).after(retry, false), Next::NewPrefill);
        }
    }

    #[test]
    fn never_and_a_single_attempt_end_at_once() {
        assert_eq!(Ladder::new(9).after(Retry::Never, true), Next::GiveUp);
        assert_eq!(Ladder::new(1).after(Retry::SameTarget, true), Next::GiveUp);
        assert_eq!(Ladder::new(0).after(Retry::NewPrefill, true), Next::GiveUp);
    }
}

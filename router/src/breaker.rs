//! A circuit breaker: closed while things go well, open after failures, half open for one probe after a wait. Pure: the time is an
//! argument, in milliseconds of any clock that only grows.
//!
//! [`Guard`] shares one among requests; asking a breaker that has seen no failure costs one load of an atomic.

use std::time::Duration;

use crate::sync::{AtomicU64, Mutex, Ordering};

/// When a breaker opens and closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// Failures in a row that open it.
    pub(crate) failures: u32,
    /// Probes in a row that must go well before it closes.
    pub(crate) successes: u32,
    /// The first wait before a probe; doubled after each that fails.
    pub(crate) first_wait_ms: u64,
    /// The longest wait before a probe.
    pub(crate) longest_wait_ms: u64,
    /// Failures further apart than this are not in a row.
    pub(crate) window_ms: u64,
}

impl Tuning {
    /// As many failures as never come together.
    pub(crate) const NEVER: u32 = u32::MAX;

    /// Waits from a second, or less if `longest` is.
    pub(crate) fn new(failures: u32, successes: u32, longest: Duration, window: Duration) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            failures,
            successes,
            first_wait_ms: ms(longest).min(1000),
            longest_wait_ms: ms(longest),
            window_ms: ms(window),
        }
    }

    /// The same for a pod: it takes twice as many failures, since they come from all its ranks.
    pub(crate) fn of_pod(self) -> Self {
        Self { failures: self.failures.saturating_mul(2), ..self }
    }
}

/// What a breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
        last_ms: u64,
    },
    Open {
        until_ms: u64,
        wait_ms: u64,
    },
    /// `probing_until_ms`: a probe is out, or is taken for lost from then on.
    HalfOpen {
        probing_until_ms: Option<u64>,
        successes: u32,
        wait_ms: u64,
    },
}

/// The state machine.
#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    tuning: Tuning,
    state: State,
}

impl Breaker {
    /// What [`Self::as_str`] may say.
    pub(crate) const STATES: [&str; 3] = ["closed", "open", "half_open"];

    pub(crate) fn new(tuning: Tuning) -> Self {
        Self { tuning, state: State::Closed { failures: 0, last_ms: 0 } }
    }

    /// From when on a request may pass; 0 while it is closed.
    fn admits_from(&self) -> u64 {
        match self.state {
            State::Closed { .. } => 0,
            State::Open { until_ms, .. } => until_ms,
            State::HalfOpen { probing_until_ms, .. } => probing_until_ms.unwrap_or(0),
        }
    }

    /// One request passes, if it may.
    pub(crate) fn begin(&mut self, now_ms: u64) -> bool {
        let may = self.admits_from() <= now_ms;
        match self.state {
            State::Open { wait_ms, .. } if may => {
                let probing_until_ms = Some(now_ms.saturating_add(wait_ms));
                self.state = State::HalfOpen { probing_until_ms, successes: 0, wait_ms };
            }
            State::HalfOpen { successes, wait_ms, .. } if may => {
                let probing_until_ms = Some(now_ms.saturating_add(wait_ms));
                self.state = State::HalfOpen { probing_until_ms, successes, wait_ms };
            }
            State::Closed { .. } | State::Open { .. } | State::HalfOpen { .. } => {}
        }
        may
    }

    /// A request went well. What was sent before it opened does not count for an open one.
    pub(crate) fn succeed(&mut self) {
        match self.state {
            State::Closed { .. } => self.state = State::Closed { failures: 0, last_ms: 0 },
            State::Open { .. } => {}
            State::HalfOpen { successes, wait_ms, .. } => {
                let successes = successes.saturating_add(1);
                self.state = if successes >= self.tuning.successes {
                    State::Closed { failures: 0, last_ms: 0 }
                } else {
                    State::HalfOpen { probing_until_ms: None, successes, wait_ms }
                };
            }
        }
    }

    /// A request failed; `weight` is how many failures it counts as.
    pub(crate) fn fail(&mut self, now_ms: u64, weight: u32) {
        match self.state {
            State::Closed { failures, last_ms } => {
                let in_a_row = now_ms.saturating_sub(last_ms) <= self.tuning.window_ms;
                let failures = if in_a_row { failures } else { 0 }.saturating_add(weight);
                self.state = if failures >= self.tuning.failures {
                    self.opened(now_ms, self.tuning.first_wait_ms)
                } else {
                    State::Closed { failures, last_ms: now_ms }
                };
            }
            // Requests that were under way when it opened say nothing new.
            State::Open { .. } => {}
            State::HalfOpen { wait_ms, .. } => {
                let wait_ms = wait_ms.saturating_mul(2).min(self.tuning.longest_wait_ms);
                self.state = self.opened(now_ms, wait_ms);
            }
        }
    }

    fn opened(&self, now_ms: u64, wait_ms: u64) -> State {
        let wait_ms = wait_ms.min(self.tuning.longest_wait_ms);
        State::Open { until_ms: now_ms.saturating_add(wait_ms), wait_ms }
    }

    /// There is news that it may go well again: the next request is a probe.
    pub(crate) fn reconsider(&mut self) {
        if let State::Open { .. } = self.state {
            self.state = State::HalfOpen { probing_until_ms: None, successes: 0, wait_ms: self.tuning.first_wait_ms };
        }
    }

    /// For operators.
    pub(crate) fn as_str(&self) -> &'static str {
        match self.state {
            State::Closed { .. } => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half_open",
        }
    }

    fn is_clean(&self) -> bool {
        matches!(self.state, State::Closed { failures: 0, .. })
    }
}

/// What [`Guard`] shows of a closed breaker that counts failures.
const COUNTING: u64 = 1;

/// A shared breaker.
#[derive(Debug)]
pub(crate) struct Guard {
    /// 0: closed without a failure; else when it admits, at least [`COUNTING`].
    quick: AtomicU64,
    breaker: Mutex<Breaker>,
}

impl Guard {
    pub(crate) fn new(tuning: Tuning) -> Self {
        Self { quick: AtomicU64::new(0), breaker: Mutex::new(Breaker::new(tuning)) }
    }

    /// Whether a request could pass now.
    pub(crate) fn admits(&self, now_ms: u64) -> bool {
        self.quick.load(Ordering::Relaxed) <= now_ms.max(COUNTING)
    }

    /// One request passes, if it may.
    pub(crate) fn begin(&self, now_ms: u64) -> bool {
        self.is_closed() || self.with(|it| it.begin(now_ms))
    }

    fn is_closed(&self) -> bool {
        self.quick.load(Ordering::Relaxed) == 0
    }

    /// A request went well.
    pub(crate) fn succeed(&self) {
        if !self.is_closed() {
            self.with(Breaker::succeed);
        }
    }

    /// A request failed.
    pub(crate) fn fail(&self, now_ms: u64, weight: u32) {
        self.with(|it| it.fail(now_ms, weight));
    }

    /// There is news that it may go well again.
    pub(crate) fn reconsider(&self) {
        if !self.is_closed() {
            self.with(Breaker::reconsider);
        }
    }

    /// For operators.
    pub(crate) fn as_str(&self) -> &'static str {
        self.breaker.lock().as_str()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.breaker.lock();
        let result = act(&mut breaker);
        let quick = if breaker.is_clean() { 0 } else { breaker.admits_from().max(COUNTING) };
        self.quick.store(quick, Ordering::Relaxed);
        result
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const TUNING: Tuning =
        Tuning { failures: 3, successes: 2, first_wait_ms: 1000, longest_wait_ms: 3000, window_ms: 10_000 };

    fn opened() -> Breaker {
        let mut breaker = Breaker::new(TUNING);
        (0..3).for_each(|_| breaker.fail(100, 1));
        assert_eq!(breaker.as_str(), "open");
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not_let_them() {
        let mut breaker = Breaker::new(TUNING);
        for _ in 0..5 {
            breaker.fail(5, 1);
            breaker.fail(5, 1);
            breaker.succeed();
        }
        assert_eq!(breaker.as_str(), "closed");
        breaker.fail(5, 2);
        breaker.fail(10_006, 2);
        assert_eq!(breaker.as_str(), "closed", "they are too far apart");
        breaker.fail(10_007, 1);
        assert_eq!(breaker.as_str(), "open");
        assert!(!breaker.begin(10_008));
    }

    #[test]
    fn one_probe_at_a_time_passes_after_the_wait_and_enough_of_them_close_it() {
        let mut breaker = opened();
        assert!(!breaker.begin(1099));
        assert!(breaker.begin(1100));
        assert!(!breaker.begin(1101), "one at a time");
        breaker.succeed();
        assert_eq!(breaker.as_str(), "half_open");
        assert!(breaker.begin(1102) && !breaker.begin(1103));
        breaker.succeed();
        assert_eq!(breaker.as_str(), "closed");
        assert!(breaker.begin(1104) && breaker.begin(1104));
    }

    #[test]
    fn probes_that_fail_double_the_wait_up_to_the_longest() {
        let mut breaker = opened();
        let mut now = 1100;
        for wait in [2000, 3000, 3000] {
            assert!(breaker.begin(now));
            breaker.fail(now, 1);
            assert!(!breaker.begin(now + wait - 1));
            now += wait;
        }
        assert!(breaker.begin(now));
    }

    #[test]
    fn a_probe_that_nobody_reports_on_is_taken_for_lost() {
        let mut breaker = opened();
        assert!(breaker.begin(1100));
        assert!(!breaker.begin(2099));
        assert!(breaker.begin(2100));
    }

    #[test]
    fn what_was_under_way_when_it_opened_changes_nothing() {
        let mut breaker = opened();
        breaker.succeed();
        breaker.fail(900, 9);
        assert!(!breaker.begin(1099) && breaker.begin(1100));
    }

    #[test]
    fn news_lets_a_probe_through_at_once() {
        let mut breaker = opened();
        breaker.reconsider();
        assert!(breaker.begin(101) && !breaker.begin(102));
    }

    #[test]
    fn the_guard_shows_what_the_breaker_says() {
        let guard = Guard::new(TUNING);
        assert!(guard.admits(0) && guard.begin(0));
        guard.fail(100, 2);
        assert!(guard.admits(0) && guard.begin(101) && guard.begin(101));
        guard.fail(101, 1);
        assert!(!guard.admits(1100) && guard.admits(1101));
        assert!(guard.begin(1101));
        assert!(!guard.admits(1102) && !guard.begin(1102));
        guard.succeed();
        assert!(guard.admits(1102) && guard.begin(1102));
        guard.succeed();
        assert!(guard.is_closed());
    }
}

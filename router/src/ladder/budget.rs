//! The retries that all requests may make together: a share of the requests, and a floor per second. When everything fails, retries must
//! not multiply the load of whoever is left.

use std::time::Duration;

use tokio::time::Instant;

use crate::sync::{AtomicU64, Mutex, Ordering};

/// One retry, in the unit of the balance: percent of a request, times milliseconds.
const RETRY: u64 = 100 * 1000;
/// What is not used of the floor is kept for so long.
const KEPT: u64 = 10;
/// Retries that a share of the requests may save up.
const SAVED: u64 = 100;

/// A bucket of retries.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    percent: u64,
    per_second: u64,
    /// Requests since the balance was last struck.
    requests: AtomicU64,
    balance: Mutex<Balance>,
}

#[derive(Debug)]
struct Balance {
    saved: u64,
    struck: Instant,
}

impl RetryBudget {
    /// Full.
    pub(crate) fn new(percent: u32, per_second: u32, now: Instant) -> Self {
        let mut budget = Self {
            percent: u64::from(percent),
            per_second: u64::from(per_second),
            requests: AtomicU64::new(0),
            balance: Mutex::new(Balance { saved: 0, struck: now }),
        };
        budget.balance.get_mut().saved = budget.most();
        budget
    }

    fn most(&self) -> u64 {
        let share = if self.percent > 0 { SAVED } else { 0 };
        (share + KEPT * self.per_second) * RETRY
    }

    /// One more request.
    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one retry, if there is one.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let mut balance = self.balance.lock();
        let requests = self.requests.swap(0, Ordering::Relaxed);
        let passed = now.saturating_duration_since(balance.struck).min(Duration::from_secs(KEPT));
        let passed = u64::try_from(passed.as_millis()).unwrap_or(KEPT * 1000);
        balance.struck = now;
        let earned = requests.saturating_mul(self.percent * 1000).saturating_add(passed * self.per_second * 100);
        let saved = balance.saved.saturating_add(earned).min(self.most());
        let left = saved.checked_sub(RETRY);
        balance.saved = left.unwrap_or(saved);
        left.is_some()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn taken(budget: &RetryBudget, now: Instant) -> u64 {
        (0..100_000).take_while(|_| budget.take(now)).count() as u64
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_the_requests() {
        let now = Instant::now();
        let budget = RetryBudget::new(20, 0, now);
        assert_eq!(taken(&budget, now), SAVED, "it begins full");
        (0..49).for_each(|_| budget.request());
        assert_eq!(taken(&budget, now), 9);
        budget.request();
        assert_eq!(taken(&budget, now), 1, "parts of a retry are kept");
        assert_eq!(taken(&budget, now + Duration::from_secs(3600)), 0);
        (0..10_000).for_each(|_| budget.request());
        assert_eq!(taken(&budget, now), SAVED, "no more is saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_floor_is_allowed_however_few_requests_there_are() {
        let now = Instant::now();
        let budget = RetryBudget::new(0, 4, now);
        assert_eq!(taken(&budget, now), 4 * KEPT);
        assert_eq!(taken(&budget, now + Duration::from_millis(1250)), 5);
        assert_eq!(taken(&budget, now + Duration::from_secs(3600)), 4 * KEPT);
        assert_eq!(
            taken(&RetryBudget::new(0, 0, now), now + Duration::from_secs(3600)),
            0,
            "retries can be switched off"
        );
    }
}

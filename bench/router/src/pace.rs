//! When the next request of a load goes out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Requests of all connections together: one after the other on each, or by the clock.
#[derive(Debug)]
pub struct Pace {
    begin: Instant,
    until: Instant,
    most: u64,
    /// Seconds between two requests; 0: as fast as they are answered.
    every: f64,
    taken: AtomicU64,
}

/// One request to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Its number, from 0.
    pub number: u64,
    /// Since when it counts: since it was due, if no connection was free then.
    pub since: Instant,
    /// It belongs to the second half of the time.
    pub late: bool,
}

impl Pace {
    /// At most so many requests within so many seconds, so many a second if a rate is given.
    pub fn new(most: u64, seconds: f64, rate: Option<f64>) -> Self {
        let begin = Instant::now();
        let every = rate.filter(|rate| *rate > 0.0).map_or(0.0, |rate| 1.0 / rate);
        Self { begin, until: begin + Duration::from_secs_f64(seconds), most, every, taken: AtomicU64::new(0) }
    }

    /// Waits until the next request may go; `None` when there is none any more.
    ///
    /// # Cancel safety
    /// Dropping the future loses a request.
    pub async fn next(&self) -> Option<Turn> {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        let asked = Instant::now();
        #[expect(clippy::cast_precision_loss, reason = "far fewer requests than 2^52")]
        let due = self.begin + Duration::from_secs_f64(self.every * number as f64);
        if number >= self.most || due.max(asked) >= self.until {
            return None;
        }
        let mut since = if self.every == 0.0 { asked } else { due };
        if due > asked {
            // A timer goes off up to a millisecond late, which is not the server's fault.
            sleep_until(due).await;
            since = Instant::now();
        }
        let late = since.duration_since(self.begin) * 2 > self.until.duration_since(self.begin);
        Some(Turn { number, since, late })
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_due_by_the_clock_whoever_sends_them() {
        let pace = Pace::new(u64::MAX, 1.0, Some(4.0));
        let mut due = Vec::new();
        while let Some(turn) = pace.next().await {
            due.push((turn.number, turn.since.duration_since(pace.begin).as_millis(), turn.late));
            if turn.number == 0 {
                // Nobody was free when the second and the third were due.
                tokio::time::sleep(Duration::from_millis(600)).await;
            }
        }
        assert_eq!(due, [(0, 0, false), (1, 250, false), (2, 500, false), (3, 750, true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_they_follow_each_other_up_to_their_number() {
        let pace = Pace::new(2, 1.0, None);
        assert!(pace.next().await.is_some() && pace.next().await.is_some() && pace.next().await.is_none());
    }
}

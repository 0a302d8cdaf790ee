//! How long the agent's thread waits between polls while reads are in flight: a few polls at once, because small reads end in
//! tens of microseconds, then 50 µs, then 200 µs, which was the fastest and cheapest steady state (nixl-ffi.md §3.4).

use std::time::Duration;

/// Polls without a wait after something happened.
const AT_ONCE: u32 = 6;
/// Polls at [`SHORT`] after those.
const AT_SHORT: u32 = 20;
const SHORT: Duration = Duration::from_micros(50);
const LONG: Duration = Duration::from_micros(200);

/// Counts polls since the last event.
#[derive(Debug, Default)]
pub(super) struct Pace {
    polls: u32,
}

impl Pace {
    /// Something was posted or has ended: more may follow soon.
    pub(super) fn reset(&mut self) {
        self.polls = 0;
    }

    /// How long to wait before the next poll.
    pub(super) fn next(&mut self) -> Duration {
        self.polls = self.polls.saturating_add(1);
        if self.polls <= AT_ONCE {
            Duration::ZERO
        } else if self.polls <= AT_ONCE + AT_SHORT {
            SHORT
        } else {
            LONG
        }
    }
}

/// How long to wait before the next call that pushes a notification out, `sent` ago: NIXL does not say when it is out, and on a
/// connection that is still being made it takes a while. None when it must be out.
pub(super) fn linger(sent: Duration) -> Option<Duration> {
    match sent.as_millis() {
        0..20 => Some(LONG),
        20..200 => Some(Duration::from_millis(1)),
        200..3000 => Some(Duration::from_millis(10)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_start_at_once_and_settle_at_200_us() {
        let mut pace = Pace::default();
        let waits: Vec<_> = (0..40).map(|_| pace.next()).collect();
        assert!(waits.is_sorted());
        assert_eq!((waits[0], waits[10], waits[39]), (Duration::ZERO, SHORT, LONG));
        pace.reset();
        assert_eq!(pace.next(), Duration::ZERO);
    }

    #[test]
    fn lingering_ends() {
        assert_eq!(linger(Duration::ZERO), Some(LONG));
        assert_eq!(linger(Duration::from_secs(2)), Some(Duration::from_millis(10)));
        assert_eq!(linger(Duration::from_secs(3)), None);
    }
}

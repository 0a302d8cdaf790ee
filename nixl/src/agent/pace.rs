//! How long the agent's thread waits: between polls while reads are in flight, and awake for the next command after them.
//!
//! Small reads end within some tens of microseconds, less than a sleep takes: at first the thread does not sleep at all, it lets others
//! run and polls again. After that it sleeps for an eighth of the time that the read has taken so far, so that the end is noticed at most
//! that much late, and at most 400 µs: over TCP a poll moves what has come in since the last one, and few large steps are faster and
//! cheaper than many small ones, until the socket's buffers are full before the next poll (docs/benchmarks.md has the measurements).
//!
//! A thread that sleeps takes longer to wake than a small read takes to run, so where command follows command the thread stays awake
//! between them. The last command says whether that is so: after one that came soon after a read, it is worth waiting awake for the
//! next one; after one that came late it is not. So single reads cost no waiting, and a row of them costs one in vain, its last.

use std::time::{Duration, Instant};

/// No sleep between polls for so long after something happened.
const AT_ONCE: Duration = Duration::from_micros(150);
/// A sleep is one of so many parts of the time since.
const PART: u32 = 8;
/// The longest sleep between polls.
const LONGEST: Duration = Duration::from_micros(400);
/// What "soon" is.
const SOON: Duration = Duration::from_micros(50);

/// When something last happened, and what to make of it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    event: Option<Instant>,
    soon: bool,
}

impl Pace {
    /// A read was posted or has ended.
    pub(super) fn happened(&mut self, now: Instant) {
        self.event = Some(now);
    }

    /// A command has come, the first one since the last lap.
    pub(super) fn asked(&mut self, now: Instant) {
        self.soon = self.event.is_some_and(|event| now.saturating_duration_since(event) <= SOON);
    }

    /// How long to wait before the next poll.
    pub(super) fn next(&self, now: Instant) -> Duration {
        let since = self.event.map_or(Duration::MAX, |event| now.saturating_duration_since(event));
        if since < AT_ONCE { Duration::ZERO } else { (since / PART).min(LONGEST) }
    }

    /// How long to stay awake for a command.
    pub(super) fn awake(&self, now: Instant) -> Duration {
        let since = self.event.map_or(Duration::MAX, |event| now.saturating_duration_since(event));
        if self.soon { SOON.saturating_sub(since) } else { Duration::ZERO }
    }
}

/// How long to wait before the next call that pushes a notification out, `sent` ago: NIXL does not say when it is out, and on a
/// connection that is still being made it takes a while. None when it must be out.
pub(super) fn linger(sent: Duration) -> Option<Duration> {
    match sent.as_millis() {
        0..20 => Some(Duration::from_micros(200)),
        20..200 => Some(Duration::from_millis(1)),
        200..3000 => Some(Duration::from_millis(10)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock;
    use super::*;

    #[test]
    fn polls_start_at_once_and_settle_at_400_us() {
        let (mut pace, start) = (Pace::default(), clock::now());
        assert_eq!(pace.next(start), LONGEST);
        pace.happened(start);
        let waits: Vec<_> = (0..100).map(|step| pace.next(start + Duration::from_micros(40 * step))).collect();
        assert!(waits.is_sorted());
        assert_eq!((waits[0], waits[3], waits[99]), (Duration::ZERO, Duration::ZERO, LONGEST));
        assert_eq!((waits[4], waits[40]), (Duration::from_micros(20), Duration::from_micros(200)));
        pace.happened(start + Duration::from_secs(1));
        assert_eq!(pace.next(start + Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn it_stays_awake_only_where_the_last_command_came_soon() {
        let (mut pace, start) = (Pace::default(), clock::now());
        let at = |us| start + Duration::from_micros(us);
        pace.asked(start);
        pace.happened(at(10));
        assert_eq!(pace.awake(at(10)), Duration::ZERO, "nothing is known yet");
        pace.asked(at(30));
        pace.happened(at(40));
        assert_eq!((pace.awake(at(40)), pace.awake(at(80)), pace.awake(at(95))), (SOON, SOON / 5, Duration::ZERO));
        pace.asked(at(10_000));
        pace.happened(at(10_010));
        assert_eq!(pace.awake(at(10_010)), Duration::ZERO, "it would have waited in vain");
    }

    #[test]
    fn lingering_ends() {
        assert_eq!(linger(Duration::ZERO), Some(Duration::from_micros(200)));
        assert_eq!(linger(Duration::from_secs(2)), Some(Duration::from_millis(10)));
        assert_eq!(linger(Duration::from_secs(3)), None);
    }
}

//! The producer's promise to keep blocks readable until a point in time, as far as the reader can know it.
//!
//! vLLM pins a finished prefill's blocks for `kv_lease_duration`; a heartbeat moves the end to
//! `max(old, now + lease·2//3)` and is sent every `lease//6` (`docs/vllm-nixl-protocol.md` §3.4). The lease's end is not on
//! the wire, so every figure here errs towards "already over".

use std::time::{Duration, Instant};

/// The right to read one prefill's blocks, held while [`Lease::is_over`] says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    length: Duration,
    ends_at: Instant,
}

impl Lease {
    /// A lease of `length` whose producer cannot have finished earlier than `age` before `now`.
    pub fn begun(length: Duration, age: Duration, now: Instant) -> Self {
        // A lease older than the clock itself is over.
        let ends_at = (now + length).checked_sub(age).unwrap_or(now);
        Self { length, ends_at }
    }

    /// The configured length.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// How often the producer wants to hear a heartbeat.
    pub fn beat_every(&self) -> Duration {
        (self.length / 6).max(Duration::from_millis(10))
    }

    /// Accounts for a heartbeat that left at `sent_at`. One sent after the end revives nothing.
    pub fn beat(&mut self, sent_at: Instant) {
        if !self.is_over(sent_at) {
            self.ends_at = self.ends_at.max(sent_at + extension(self.length));
        }
    }

    /// Whether the producer may already have reused the blocks. True a little early, so that what was read just before
    /// is still the producer's.
    pub fn is_over(&self, now: Instant) -> bool {
        now + self.margin() >= self.ends_at
    }

    /// The moment at which [`Lease::is_over`] turns true if no heartbeat is sent.
    pub fn over_at(&self) -> Instant {
        self.ends_at.checked_sub(self.margin()).unwrap_or(self.ends_at)
    }

    /// Time left until then.
    pub fn left(&self, now: Instant) -> Duration {
        self.over_at().saturating_duration_since(now)
    }

    fn margin(&self) -> Duration {
        self.length / 20
    }
}

/// What one heartbeat buys. vLLM computes with whole seconds and rounds down.
fn extension(length: Duration) -> Duration {
    if length.subsec_nanos() == 0 { Duration::from_secs(length.as_secs() * 2 / 3) } else { length * 2 / 3 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, ms};

    #[test]
    fn a_lease_counts_from_the_earliest_end_of_the_prefill() {
        let lease = Lease::begun(ms(30_000), ms(10_000), at(10_000));
        assert!(!lease.is_over(at(28_000)));
        assert!(lease.is_over(at(28_500)), "30 s less 5 % margin");
        assert_eq!(lease.left(at(20_000)), ms(8_500));
        assert_eq!(lease.left(at(40_000)), ms(0));
    }

    #[test]
    fn a_beat_moves_the_end_by_two_thirds_in_whole_seconds_and_never_back() {
        let mut lease = Lease::begun(ms(30_000), ms(0), at(0));
        lease.beat(at(1_000));
        assert_eq!(lease.over_at(), at(28_500), "20 s from the beat is earlier than the lease's own end");
        lease.beat(at(20_000));
        assert_eq!(lease.over_at(), at(38_500));
        let mut short = Lease::begun(ms(2_000), ms(0), at(0));
        short.beat(at(1_800));
        assert_eq!(short.over_at(), at(2_700), "2 s leases grow by 1 s, not by 1.33 s");
    }

    #[test]
    fn a_lease_knows_its_length_and_wants_six_beats_in_it() {
        let lease = Lease::begun(ms(30_000), ms(0), at(0));
        assert_eq!((lease.length(), lease.beat_every()), (ms(30_000), ms(5_000)));
        let short = Lease::begun(ms(30), ms(0), at(0));
        assert_eq!(short.beat_every(), ms(10), "not more often than that");
    }

    #[test]
    fn a_lease_of_broken_seconds_grows_by_two_thirds_of_it() {
        let mut lease = Lease::begun(ms(1_500), ms(0), at(0));
        lease.beat(at(1_200));
        assert_eq!(lease.over_at(), at(2_125), "1 s after the beat, less a margin of 75 ms");
    }

    #[test]
    fn a_late_beat_revives_nothing() {
        let mut lease = Lease::begun(ms(30_000), ms(0), at(0));
        lease.beat(at(29_000));
        assert!(lease.is_over(at(29_000)));
        assert_eq!(lease.over_at(), at(28_500));
    }

    #[test]
    fn an_age_beyond_the_clock_is_a_lease_that_is_over() {
        let lease = Lease::begun(ms(30_000), Duration::from_secs(u64::MAX / 4), at(0));
        assert!(lease.is_over(at(0)));
    }
}

//! Times for tests: milliseconds on one made-up clock.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The point `offset` ms after the start of the made-up clock.
pub(crate) fn at(offset: u64) -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "the one origin of the tests' clock")]
    let start = START.get_or_init(Instant::now);
    *start + ms(offset)
}

/// A duration in ms.
pub(crate) fn ms(length: u64) -> Duration {
    Duration::from_millis(length)
}

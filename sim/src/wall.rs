//! The one place that reads the wall clock: for log lines and `created` fields, never for decisions.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "wall-clock time for logs, at this one place")]
pub fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    unix_micros() / 1_000_000
}

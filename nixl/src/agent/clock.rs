//! The one place where the agent's thread reads the clock. It is real time on purpose: it paces calls into NIXL, which knows
//! no other.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the agent's thread has no async runtime and waits for hardware")]
pub(super) fn now() -> Instant {
    Instant::now()
}

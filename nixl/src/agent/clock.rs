//! The one place where the agent's thread reads the clock. It is real time on purpose: it paces calls into NIXL, which knows
//! no other.
#![allow(unsafe_code, reason = "prctl")]

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the agent's thread has no async runtime and waits for hardware")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// This thread's sleeps end when they are over, and not up to 50 µs later, together with others: its sleeps are that short. Where the
/// kernel does not take it, they end late.
pub(super) fn sleep_exactly() {
    const ONE_NS: libc::c_ulong = 1;
    // SAFETY: this option takes one number and changes nothing but this thread's timers.
    let _refused = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, ONE_NS) };
}

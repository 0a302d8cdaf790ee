//! A child of `kvgate demo` must not outlive it, even if the demo is killed.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Asks the kernel to end this process with its parent `pid`. False when the parent is gone already.
pub(crate) fn end_with(pid: i32) -> bool {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        tracing::warn!(error = %error, "this process will not notice the end of its parent");
    }
    // The parent may have ended before the request above.
    getppid() == Pid::from_raw(pid)
}

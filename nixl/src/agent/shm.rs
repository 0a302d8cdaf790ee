//! Room for UCX's shared memory.
//!
//! UCX's `posix` transport lays some 4 MiB of segments per agent into `/dev/shm`. Before each segment it looks whether 16 MiB are free.
//! When its first segment finds them and its next one does not, it follows a null pointer and the process is gone (UCX 1.22,
//! `uct_mm_iface_t_new` within `ucp_worker_create`). With less room from the start it goes by System V segments, which is as good.
//! So an agent that starts where that can happen is told to leave `posix` out. `UCX_TLS`, when it is set, has the last word.

use std::ffi::{CStr, CString};

use parking_lot::{Mutex, MutexGuard};

/// UCX takes `posix` for a segment when so much is free. Bytes.
const UCX_WANTS: u64 = 16 << 20;
/// What other processes and our own other agents may take while an agent starts: about five agents'. Bytes.
const MARGIN: u64 = 24 << 20;
/// With less than this, agents of this process start one at a time. Bytes.
const PLENTY: u64 = 1 << 30;
/// The back end that this is about.
const UCX: &str = "UCX";
/// Its parameter for settings of UCX, without their `UCX_`.
const SETTINGS: &CStr = c"engine_config";
const WITHOUT_POSIX: &CStr = c"TLS=^posix";

/// Agents that start where there is little room.
static STARTING: Mutex<()> = Mutex::new(());

/// What an agent's start needs while its back end is made; hold it until then.
pub(super) struct Room {
    /// More parameters of the back end.
    pub(super) more: Option<(CString, CString)>,
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Room {
    /// Looks at `/dev/shm`, and waits for other agents' starts when it is small.
    pub(super) fn look(backend: &str, params: &[(CString, CString)]) -> Self {
        // Settings that somebody chose are left as they are.
        if backend != UCX || params.iter().any(|(key, _)| key.as_c_str() == SETTINGS) {
            return Self { more: None, _alone: None };
        }
        let alone = free().is_some_and(|free| free < PLENTY).then(|| STARTING.lock());
        let more = free().filter(|free| is_dangerous(*free)).map(|_| (SETTINGS.to_owned(), WITHOUT_POSIX.to_owned()));
        Self { more, _alone: alone }
    }
}

fn is_dangerous(free: u64) -> bool {
    // Below, UCX does not begin with it; but a process that ends may make room in between.
    free < UCX_WANTS + MARGIN
}

/// Free bytes of `/dev/shm`; nothing when there is none.
fn free() -> Option<u64> {
    let shm = rustix::fs::statvfs("/dev/shm").ok()?;
    Some(shm.f_bavail.saturating_mul(shm.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn posix_is_left_out_where_its_next_segment_may_not_fit() {
        for (free, expected) in
            [(0, true), (UCX_WANTS - 1, true), (UCX_WANTS, true), (39 << 20, true), (40 << 20, false)]
        {
            assert_eq!(is_dangerous(free), expected, "{free} bytes are free");
        }
    }

    #[test]
    fn settings_that_somebody_chose_stay() {
        let chosen = (SETTINGS.to_owned(), c"TLS=tcp".to_owned());
        assert!(Room::look(UCX, &[chosen]).more.is_none());
        assert!(Room::look("POSIX", &[]).more.is_none());
    }
}

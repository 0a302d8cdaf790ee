//! What `nixl::spin` is here: waiting awake takes two looks, as loom has no time.

use std::time::Duration;

/// Looks twice, and lets others run in between.
pub(crate) fn until<T>(_within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    look().or_else(|| {
        loom::thread::yield_now();
        look()
    })
}

//! Waiting awake, for what is expected within microseconds: a thread that sleeps takes longer to wake.

use std::{
    hint, thread,
    time::{Duration, Instant},
};

/// Looks between two reads of the clock; about half a microsecond.
const LOOKS: u32 = 16;

/// Looks again and again, for so long; lets others run in between, so that on a machine whose cores are all in use it takes nobody's time.
pub(crate) fn until<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = now();
    loop {
        for _ in 0..LOOKS {
            if let Some(found) = look() {
                return Some(found);
            }
            hint::spin_loop();
        }
        if begun.elapsed() >= within {
            return None;
        }
        thread::yield_now();
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread waits for another one; virtual time does not pass meanwhile")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_what_was_found_or_with_the_time() {
        let mut looks = 0;
        let third = || {
            looks += 1;
            (looks == 3).then_some(looks)
        };
        assert_eq!(until(Duration::from_secs(60), third), Some(3));
        assert_eq!(until::<()>(Duration::from_micros(10), || None), None);
    }
}

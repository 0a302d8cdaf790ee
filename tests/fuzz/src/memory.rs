//! How much is allocated while an input is read.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that a reader may ask for in all, whether it keeps them or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// Whatever the input.
    pub(crate) base: usize,
    /// For each of its bytes.
    pub(crate) each: usize,
}

impl Bound {
    /// Reads an input of `bytes` bytes.
    pub(crate) fn holds_for<T>(self, bytes: usize, read: impl FnOnce() -> T) -> T {
        let before = Region::new(MEMORY);
        let value = read();
        let taken = before.change().bytes_allocated;
        let most = self.base.saturating_add(self.each.saturating_mul(bytes));
        assert!(taken <= most, "{taken} bytes are allocated for an input of {bytes}, at most {most} are");
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_too_many_is_seen() {
        let most = Bound { base: 100, each: 10 };
        assert_eq!(most.holds_for(5, || vec![1_u8; 150]).len(), 150);
        std::panic::catch_unwind(|| most.holds_for(5, || vec![1_u8; 151])).expect_err("it is over the bound");
    }
}

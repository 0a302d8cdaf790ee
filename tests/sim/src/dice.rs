//! The seed's numbers. Each purpose has dice of its own, so that more of one changes nothing for the others.

use std::time::Duration;

use crate::entropy::next;

/// Where numbers come from.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice of one seed for one purpose.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut state = next(seed).1;
        for byte in purpose.bytes() {
            state = next(state ^ u64::from(byte)).1;
        }
        Self(state)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        let (state, number) = next(self.0);
        self.0 = state;
        number
    }

    /// A number below `sides`, which must not be 0.
    pub fn below(&mut self, sides: u64) -> u64 {
        let spread = u128::from(self.any()) * u128::from(sides);
        u64::try_from(spread >> 64).unwrap_or(0)
    }

    /// Whether something happens that does so in `percent` of all cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A time of so many milliseconds.
    pub fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to.saturating_sub(from) + 1))
    }

    /// One of several things.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let index = usize::try_from(self.below(of.len() as u64)).unwrap_or(0);
        &of[index]
    }
}

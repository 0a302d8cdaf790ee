//! One wake-up time per key, the earliest first.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

/// Wake-up times.
#[derive(Debug)]
pub(crate) struct Timers<K> {
    at: BTreeMap<K, Instant>,
    order: BTreeSet<(Instant, K)>,
}

impl<K: Ord + Clone> Timers<K> {
    /// No wake-up.
    pub(crate) fn new() -> Self {
        Self { at: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// Sets or (with `None`) takes away a key's wake-up.
    pub(crate) fn set(&mut self, key: &K, at: Option<Instant>) {
        if let Some(old) = self.at.remove(key) {
            self.order.remove(&(old, key.clone()));
        }
        if let Some(at) = at {
            self.at.insert(key.clone(), at);
            self.order.insert((at, key.clone()));
        }
    }

    /// Takes one key whose time has come.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.order.first()?.0 > now {
            return None;
        }
        let (_, key) = self.order.pop_first()?;
        self.at.remove(&key);
        Some(key)
    }

    /// Whether a key has a wake-up.
    pub(crate) fn is_set(&self, key: &K) -> bool {
        self.at.contains_key(key)
    }

    /// The next wake-up.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_key_has_one_time_and_the_earliest_comes_first() {
        let now = Instant::now();
        let mut timers = Timers::new();
        timers.set(&"a", Some(now + Duration::from_secs(2)));
        timers.set(&"b", Some(now + Duration::from_secs(1)));
        timers.set(&"a", Some(now));
        assert_eq!(timers.next(), Some(now));
        assert_eq!(timers.pop_due(now), Some("a"));
        assert_eq!(timers.pop_due(now), None);
        timers.set(&"b", None);
        assert_eq!(timers.next(), None);
    }
}

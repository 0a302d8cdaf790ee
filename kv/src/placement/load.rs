//! How much work a rank has, as one number.

/// What a pod reports of one rank, beyond what this router knows by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// Requests in the engine beyond this router's own: other routers' and other clients'.
    pub others: u32,
    /// Those of all requests in the engine that wait for a place.
    pub waiting: u32,
    /// KV-cache usage in per mille.
    pub kv_usage: u16,
    /// Usage of the staging arena in per mille, quarantined blocks included.
    pub staging_used: u16,
}

/// Requests' worth of cost that a full cache, or a full staging arena, adds; half full adds an eighth of it.
const FULL: u64 = 8;

impl Reported {
    /// The report as thousandths of a typical request: one request for each of others and once more for each that waits, and
    /// an addition that grows with the third power of the usage of cache and staging, so that it matters only where they run short.
    pub fn pressure(&self) -> u64 {
        let requests = u64::from(self.others).saturating_add(u64::from(self.waiting));
        let pressed = |used: u16| {
            let used = u64::from(used.min(1000));
            FULL * used * used * used / 1_000_000
        };
        requests.saturating_mul(1000) + pressed(self.kv_usage) + pressed(self.staging_used)
    }
}

/// The cost of giving a rank one more request, in tokens: `tokens` that this router's own requests there may still cost, and the
/// reported [`pressure`](Reported::pressure) at `typical` tokens a request.
pub fn cost(tokens: u64, pressure: u64, typical: u32) -> u64 {
    tokens.saturating_add(pressure.saturating_mul(u64::from(typical.max(1))) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_counts() {
        let idle = Reported::default();
        let at_100 = |reported: Reported| cost(70, reported.pressure(), 100) - 70;
        assert_eq!(at_100(idle), 0);
        assert_eq!(at_100(Reported { others: 2, ..idle }), 200);
        assert_eq!(at_100(Reported { others: 2, waiting: 1, ..idle }), 300, "one that waits counts twice");
        assert_eq!(at_100(Reported { kv_usage: 1000, ..idle }), 800);
        assert_eq!(at_100(Reported { kv_usage: 500, ..idle }), 100);
        assert_eq!(at_100(Reported { staging_used: 900, ..idle }), 583);
        assert_eq!(at_100(Reported { staging_used: u16::MAX, ..idle }), 800, "nothing is more than full");
        let most = Reported { others: u32::MAX, waiting: u32::MAX, kv_usage: 1000, staging_used: 1000 };
        assert!(cost(u64::MAX, most.pressure(), u32::MAX) == u64::MAX, "it saturates");
    }
}

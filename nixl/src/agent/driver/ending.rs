//! The end of an agent.
//!
//! Destroying it is a proof of quiet, `release` and `invalidate_remote_md` are none: over tcp bytes went on landing after both,
//! and none after `destroy_agent` (`tests/real/in_flight.rs`, NIXL 1.5.1). It has a price when a transfer is still running: a
//! peer that is just sending dies of it now and then (UCX 1.23: "Fatal: unexpected error: Endpoint timeout"; about one in
//! eight). So the deadline of a close should be long enough for transfers to end by themselves.

use std::mem::ManuallyDrop;

use super::Driver;
use crate::fabric::{Closed, FabricStats};

impl Driver {
    /// Gives everything back that NIXL takes. Answers whether all reads had ended well.
    pub(in super::super) fn let_everything_go(&mut self) -> bool {
        let quiet = self.transfers.give_up(&self.raw);
        // A request that NIXL holds on to may hold on to its lists and its peer as well.
        if self.transfers.all_released() {
            for (list, _peer) in std::mem::take(&mut self.prepared).into_values() {
                if self.raw.release_prepared(list).is_err() {
                    self.transfers.cleanup_failed();
                }
            }
        }
        quiet
    }

    /// Destroys the agent. When that fails, everything is leaked with the memory that it may write.
    pub(in super::super) fn destroy(self, quiet: bool) -> (Closed, FabricStats) {
        let Self { raw, transfers, registered, .. } = self;
        let mut last = FabricStats::default();
        transfers.count(&mut last);
        let pinned = ManuallyDrop::new((transfers, registered));
        let how = match raw.destroy() {
            Ok(()) => {
                drop(ManuallyDrop::into_inner(pinned));
                if quiet { Closed::Quiet } else { Closed::Destroyed }
            }
            Err(_) => Closed::Stuck,
        };
        (how, last)
    }
}

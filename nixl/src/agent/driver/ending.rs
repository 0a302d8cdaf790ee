//! The end of an agent.

use std::{mem::ManuallyDrop, time::Duration};

use super::{Driver, c_name};
use crate::{
    agent::clock,
    fabric::{Closed, FabricStats},
};

/// How long transfers that were given up may still run down before their agent is destroyed. Over tcp a peer that is just
/// sending dies of a destroyed agent now and then (UCX 1.23: "Fatal: unexpected error: Endpoint timeout"; 3 of 22 in
/// `tests/real/in_flight.rs`, none of 25 with this).
const RUN_DOWN: Duration = Duration::from_millis(200);

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
            if !quiet {
                self.run_down();
            }
        }
        quiet
    }

    fn run_down(&mut self) {
        for peer in std::mem::take(&mut self.peers) {
            if self.raw.forget_peer(&c_name(&peer)).is_err() {
                self.transfers.cleanup_failed();
            }
        }
        let start = clock::now();
        while start.elapsed() < RUN_DOWN {
            // Its progress call; what comes in has no reader any more.
            drop(self.raw.notifications());
            std::thread::sleep(Duration::from_micros(200));
        }
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

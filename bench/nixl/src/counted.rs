//! How often this process has asked for memory: nothing that NIXL's poll loop may do.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations and reallocations of Rust code since the process started. NIXL's own are not in it.
pub(crate) fn allocations() -> usize {
    let stats = MEMORY.stats();
    stats.allocations.saturating_add(stats.reallocations)
}

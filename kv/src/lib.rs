//! The pure core: ids, layout, blocks to descriptors, slots, transfers, leases, readiness, placement

//! Safe, owning use of NIXL: agents, regions, transfers, notifications

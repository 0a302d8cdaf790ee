//! The embedded engine: vLLM's HTTP and side channel over real NIXL memory

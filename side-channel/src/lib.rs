//! vLLM's NIXL side channel as a transport: ask and serve over ZeroMQ

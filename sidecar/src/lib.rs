//! The daemon beside a vLLM pod: rank watchers, staging, transfers, HTTP API

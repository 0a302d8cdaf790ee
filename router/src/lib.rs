//! The OpenAI-compatible prefill/decode router that waits for receipts

//! See `fuzz_targets::kv_transfer_params`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::kv_transfer_params(data));

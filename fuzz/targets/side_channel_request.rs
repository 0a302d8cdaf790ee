//! See `fuzz_targets::side_channel_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::side_channel_request(data));

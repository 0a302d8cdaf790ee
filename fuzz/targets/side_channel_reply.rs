//! See `fuzz_targets::side_channel_reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::side_channel_reply(data));

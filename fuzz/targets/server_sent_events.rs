//! See `fuzz_targets::server_sent_events`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::server_sent_events(data));

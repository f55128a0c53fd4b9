//! Any bytes as a snapshot that somebody else made.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_tests::fuzz::snapshot(data));

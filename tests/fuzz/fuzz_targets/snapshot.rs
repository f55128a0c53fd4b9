//! Any bytes as a snapshot that somebody else made.
#![no_main]
libfuzzer_sys::fuzz_target!(init: berth_tests::fuzz::begin(), |data: &[u8]| berth_tests::fuzz::snapshot(data));

//! Any bytes as descriptor chains.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_tests::fuzz::chain(data));

//! Any bytes as requests to a persistent memory device.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_tests::fuzz::pmem(data));

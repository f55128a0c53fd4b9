//! Any bytes as accesses to the port devices.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_tests::fuzz::ports(data));

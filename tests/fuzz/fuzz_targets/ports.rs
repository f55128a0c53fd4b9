//! Any bytes as accesses to the port devices.
#![no_main]
libfuzzer_sys::fuzz_target!(init: berth_tests::fuzz::begin(), |data: &[u8]| berth_tests::fuzz::ports(data));

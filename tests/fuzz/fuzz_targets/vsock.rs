//! Any bytes as packets for the socket device.
#![no_main]
libfuzzer_sys::fuzz_target!(init: berth_tests::fuzz::begin(), |data: &[u8]| berth_tests::fuzz::vsock(data));

//! Any bytes as a qcow2 image and requests to it.
#![no_main]
libfuzzer_sys::fuzz_target!(init: berth_tests::fuzz::begin(), |data: &[u8]| berth_tests::fuzz::qcow2(data));

//! Any bytes as a tar file to build an image of.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_tests::fuzz::tar(data));

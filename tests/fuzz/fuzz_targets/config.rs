//! Any text as a description of a VM.
#![no_main]
libfuzzer_sys::fuzz_target!(init: berth_tests::fuzz::begin(), |data: &[u8]| berth_tests::fuzz::config(data));

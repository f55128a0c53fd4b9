//! Any bytes as frames and requests for a network card.
#![no_main]
libfuzzer_sys::fuzz_target!(init: berth_tests::fuzz::begin(), |data: &[u8]| berth_tests::fuzz::net(data));

//! Any bytes as frames and requests for a network card.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_tests::fuzz::net(data));

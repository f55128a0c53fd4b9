//! Any bytes as segments for the metadata service on a network card.
#![no_main]
libfuzzer_sys::fuzz_target!(init: berth_tests::fuzz::begin(), |data: &[u8]| berth_tests::fuzz::mmds(data));

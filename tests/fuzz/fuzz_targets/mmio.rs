//! Any bytes as a driver of a virtio-mmio device.
#![no_main]
libfuzzer_sys::fuzz_target!(init: berth_tests::fuzz::begin(), |data: &[u8]| berth_tests::fuzz::mmio(data));

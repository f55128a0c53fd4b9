//! Any bytes as a driver of a virtio-mmio device.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_tests::fuzz::mmio(data));

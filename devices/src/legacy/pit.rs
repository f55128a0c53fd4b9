//! What is left of the 8254 timer: ports that take anything and count nothing.
//!
//! Guests get their time from the TSC, kvm-clock and the local APIC. A kernel that calibrates against this timer finds it
//! expired at once (see the NMI status port in the keyboard controller's range) and takes another way. Reads as zero.

#![forbid(unsafe_code)]

use crate::bus::BusDevice;

/// The timer's four ports.
#[derive(Debug, Default)]
pub struct PitStub;

impl BusDevice for PitStub {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, _: &[u8]) {}
}

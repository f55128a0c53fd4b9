//! pvpanic: a guest kernel says that it crashed (QEMU's `docs/specs/pvpanic.rst`).
//!
//! One port. Reading says which events it knows, writing reports one.

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// The event port.
pub struct Pvpanic {
    events: MachineEvents,
}

impl Pvpanic {
    /// A port that reports to `events`.
    pub fn new(events: MachineEvents) -> Self {
        Self { events }
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, Some(&reported)) = (offset, data.first()) else {
            return;
        };
        // A kernel that has both to say says first what happened.
        if reported & PANICKED != 0 {
            (self.events)(MachineEvent::Panicked);
        }
        if reported & CRASH_LOADED != 0 {
            (self.events)(MachineEvent::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Log;
    use super::*;

    #[test]
    fn known_events_are_offered_and_reported_unknown_ones_ignored() {
        let log = Log::default();
        let port = Pvpanic::new(log.events());
        let mut data = [0xff];
        port.read(0, &mut data);
        assert_eq!(data, [0b11]);
        port.write(0, &[0b1111_1100]);
        assert_eq!(log.take(), []);
        port.write(0, &[0b01]);
        assert_eq!(log.take(), [MachineEvent::Panicked]);
        port.write(0, &[0b10]);
        assert_eq!(log.take(), [MachineEvent::CrashLoaded]);
    }
}

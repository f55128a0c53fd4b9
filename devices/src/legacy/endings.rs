//! Two ports by which a guest ends: with a status of its own, and with a panic.

#![forbid(unsafe_code)]

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;

/// The exit port: a byte written to it ends the VM with that status. Reads as zero.
pub struct ExitPort(MachineEvents);

impl ExitPort {
    /// A port that tells `events`.
    pub fn new(events: MachineEvents) -> Self {
        Self(events)
    }
}

impl BusDevice for ExitPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        if let Some(status) = data.first() {
            (self.0)(MachineEvent::Exit(*status));
        }
    }
}

/// pvpanic (QEMU's `docs/specs/pvpanic.rst`): reads as the events it knows, a write raises one.
pub struct Pvpanic(MachineEvents);

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

impl Pvpanic {
    /// A port that tells `events`.
    pub fn new(events: MachineEvents) -> Self {
        Self(events)
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, _: u64, data: &[u8]) {
        let event = data.first().copied().unwrap_or(0);
        if event & PANICKED != 0 {
            (self.0)(MachineEvent::Panicked);
        } else if event & CRASH_LOADED != 0 {
            (self.0)(MachineEvent::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::test_events;

    #[test]
    fn the_byte_written_is_the_status() {
        let (events, log) = test_events::log();
        let port = ExitPort::new(events);
        port.write(0, &[42, 7]);
        port.write(0, &[]);
        assert_eq!(*log.lock().unwrap(), [MachineEvent::Exit(42)]);
    }

    #[test]
    fn pvpanic_knows_two_events_and_ignores_others() {
        let (events, log) = test_events::log();
        let port = Pvpanic::new(events);
        let mut data = [0xff; 2];
        port.read(0, &mut data);
        assert_eq!(data, [3, 0]);
        for event in [0, 4, 2, 1] {
            port.write(0, &[event]);
        }
        assert_eq!(
            *log.lock().unwrap(),
            [MachineEvent::CrashLoaded, MachineEvent::Panicked]
        );
    }
}

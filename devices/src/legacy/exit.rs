//! The exit port: a byte written here ends the VM with that status.

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;

/// One port. It reads as zero, so that a guest can tell it from a port that nobody answers.
pub struct ExitPort {
    events: MachineEvents,
}

impl ExitPort {
    /// A port that reports to `events`.
    pub fn new(events: MachineEvents) -> Self {
        Self { events }
    }
}

impl BusDevice for ExitPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = 0;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(status)) = (offset, data.first()) {
            (self.events)(MachineEvent::Exit(*status));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Log;
    use super::*;

    #[test]
    fn the_first_byte_is_the_status() {
        let log = Log::default();
        let port = ExitPort::new(log.events());
        port.write(0, &[7]);
        port.write(0, &[0, 1, 2, 3]);
        port.write(1, &[9]);
        assert_eq!(log.take(), [MachineEvent::Exit(7), MachineEvent::Exit(0)]);
        let mut data = [0xff; 2];
        port.read(0, &mut data);
        assert_eq!(data, [0, 0xff]);
    }
}

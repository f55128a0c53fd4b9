//! The ready port: a guest writes here that it has started and waits for what it is to do.
//!
//! That is the moment to keep a snapshot for warm starts. As at the exit port, the write leaves the guest and is over when
//! the guest runs next.

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;

/// One port. It reads as zero, so that a guest can tell it from a port that nobody answers.
pub struct ReadyPort {
    events: MachineEvents,
}

impl ReadyPort {
    /// Written to the port: ready.
    pub const READY: u8 = 1;

    /// A port that reports to `events`.
    pub fn new(events: MachineEvents) -> Self {
        Self { events }
    }
}

impl BusDevice for ReadyPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = 0;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Other values are left for what else a guest may have to say one day.
        if let (0, Some(&Self::READY)) = (offset, data.first()) {
            (self.events)(MachineEvent::Ready);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Log;
    use super::*;

    #[test]
    fn only_the_byte_for_it_says_ready() {
        let log = Log::default();
        let port = ReadyPort::new(log.events());
        port.write(0, &[0]);
        port.write(0, &[2]);
        port.write(1, &[1]);
        assert_eq!(log.take(), []);
        port.write(0, &[1]);
        assert_eq!(log.take(), [MachineEvent::Ready]);
        let mut data = [0xff; 2];
        port.read(0, &mut data);
        assert_eq!(data, [0, 0xff]);
    }
}

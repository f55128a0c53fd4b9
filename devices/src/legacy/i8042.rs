//! The keyboard controller (IBM's 8042), of which only the reset line is there. No keyboard, no mouse.
//!
//! Two ports, five apart: data at offset 0, command and status at offset 4.

#![forbid(unsafe_code)]

use std::sync::Mutex;
use std::sync::PoisonError;

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;

const DATA: u64 = 0;
const COMMAND: u64 = 4;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;

const READ_CONFIGURATION: u8 = 0x20;
const SELF_TEST: u8 = 0xaa;
const SELF_TEST_PASSED: u8 = 0x55;
/// Pulses output lines; a zero in bit 0 of these commands is the reset line.
const PULSE: u8 = 0xf0;

/// The keyboard controller.
pub struct I8042 {
    events: MachineEvents,
    /// What the data port reads as next.
    answer: Mutex<Option<u8>>,
}

impl I8042 {
    /// Ports from the first to the last. Those between belong to others and read as zero here.
    pub const PORTS: u64 = 5;

    /// A controller that tells `events`.
    pub fn new(events: MachineEvents) -> Self {
        Self {
            events,
            answer: Mutex::new(None),
        }
    }

    fn answer(&self) -> std::sync::MutexGuard<'_, Option<u8>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some(first) = data.first_mut() else { return };
        match offset {
            DATA => *first = self.answer().take().unwrap_or(0),
            COMMAND if self.answer().is_some() => *first = STATUS_SYSTEM | STATUS_OUTPUT_FULL,
            COMMAND => *first = STATUS_SYSTEM,
            // The NMI status port: the timer's output toggles for who waits for it to.
            1 => *first = pit_output(),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (COMMAND, Some(&command)) = (offset, data.first()) else {
            return;
        };
        match command {
            READ_CONFIGURATION => *self.answer() = Some(0),
            SELF_TEST => *self.answer() = Some(SELF_TEST_PASSED),
            command if command & PULSE == PULSE && command & 1 == 0 => (self.events)(MachineEvent::Reset),
            _ => {}
        }
    }
}

/// Port 0x61: bit 5 is the output of the timer's channel 2. There is no timer; a kernel that waits for it to expire must
/// not wait for ever, so it has.
fn pit_output() -> u8 {
    1 << 5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::test_events;

    fn read(controller: &I8042, offset: u64) -> u8 {
        let mut data = [0xff];
        controller.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn pulsing_the_reset_line_resets_and_other_lines_do_not() {
        let (events, log) = test_events::log();
        let controller = I8042::new(events);
        for command in [0xff, 0xd1, 0x00, 0xfe] {
            controller.write(COMMAND, &[command]);
        }
        controller.write(DATA, &[0xfe]);
        assert_eq!(*log.lock().unwrap(), [MachineEvent::Reset]);
    }

    #[test]
    fn a_probing_kernel_gets_its_answer_once_and_is_never_kept_waiting() {
        let controller = I8042::new(test_events::log().0);
        assert_eq!(read(&controller, COMMAND) & STATUS_OUTPUT_FULL, 0);
        controller.write(COMMAND, &[SELF_TEST]);
        assert_eq!(read(&controller, COMMAND) & STATUS_OUTPUT_FULL, 1);
        assert_eq!(read(&controller, DATA), SELF_TEST_PASSED);
        assert_eq!(read(&controller, COMMAND) & 0b11, 0, "output empty, input empty");
    }
}

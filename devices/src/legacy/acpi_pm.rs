//! Power in hardware-reduced ACPI (ACPI 6.5, sections 4.8.3.7 and 5.6.9): sleep control and status, reset, and the generic
//! event register behind the power button. The values are those that Berth's ACPI tables name.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;
const EVENT: u64 = 4;

/// SLP_EN with the sleep type of S5, 5.
const POWER_OFF: u8 = 0x20 | 5 << 2;
const RESET_VALUE: u8 = 1;
const POWER_BUTTON: u8 = 1;

/// The power registers.
pub struct AcpiPm {
    /// Pulsed for each event.
    line: EventFd,
    events: MachineEvents,
    pending: AtomicU8,
}

impl AcpiPm {
    /// Ports from sleep control (0) over sleep status (1) and reset (2) to the event register (4).
    pub const PORTS: u64 = 5;

    /// Registers that tell `events` and announce theirs on `line`.
    pub fn new(line: EventFd, events: MachineEvents) -> Self {
        Self {
            line,
            events,
            pending: AtomicU8::new(0),
        }
    }

    /// Presses the power button: a guest with ACPI shuts down.
    pub fn press_power_button(&self) {
        self.pending.fetch_or(POWER_BUTTON, Ordering::AcqRel);
        // Fails only when the counter is full, and then an interrupt is pending anyway.
        let _ = self.line.write(1);
    }
}

impl BusDevice for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (EVENT, Some(first)) = (offset, data.first_mut()) {
            *first = self.pending.swap(0, Ordering::AcqRel);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data.first()) {
            (SLEEP_CONTROL, Some(&POWER_OFF)) => (self.events)(MachineEvent::Shutdown),
            (RESET, Some(&RESET_VALUE)) => (self.events)(MachineEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::test_events;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn only_s5_powers_off_and_only_the_reset_value_resets() {
        let (events, log) = test_events::log();
        let pm = AcpiPm::new(EventFd::new(EFD_NONBLOCK).unwrap(), events);
        for (offset, value) in [(0, 0x20), (0, 0x34), (1, 0x34), (2, 0), (2, 1)] {
            pm.write(offset, &[value]);
        }
        assert_eq!(
            *log.lock().unwrap(),
            [MachineEvent::Shutdown, MachineEvent::Reset]
        );
    }

    #[test]
    fn a_pressed_button_is_announced_and_read_once() {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let pm = AcpiPm::new(line.try_clone().unwrap(), test_events::log().0);
        pm.press_power_button();
        assert_eq!(line.read().unwrap(), 1);
        let mut data = [0xff; 2];
        for expected in [POWER_BUTTON, 0] {
            pm.read(EVENT, &mut data);
            assert_eq!(data, [expected, 0]);
        }
    }
}

//! What is left of ACPI's hardware in a hardware-reduced machine (ACPI 6.5, 4.8.3.7 and 5.6.9): byte registers.
//!
//! | offset | register |
//! |---|---|
//! | 0 | sleep control: [`AcpiPm::POWER_OFF`] powers off |
//! | 1 | sleep status: reads as zero, there is no waking up |
//! | 2 | reset: [`AcpiPm::RESET`] resets |
//! | 3 | nothing |
//! | 4 | pending events of the generic event device; reading clears them |
//!
//! The tables that the guest reads name the same numbers (`berth-arch`, its layout).

use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::{MachineEvent, MachineEvents, read_bytes, write_bytes};
use crate::bus::BusDevice;
use crate::warn_guest;

const SLEEP_CONTROL: u64 = 0;
const RESET_REGISTER: u64 = 2;
const EVENT: u64 = 4;

/// SLP_EN and SLP_TYP; the other bits of the sleep control register mean nothing.
const SLEEP_BITS: u8 = 0x3c;
const SLEEP_ENABLE: u8 = 0x20;

/// What the registers remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AcpiPmState {
    /// Pending events.
    pub events: u8,
}

/// The registers, and the power button.
pub struct AcpiPm {
    pending: AtomicU8,
    irq: EventFd,
    events: MachineEvents,
}

impl AcpiPm {
    /// Ports it takes.
    pub const PORTS: u64 = 5;
    /// Written to the sleep control register: power off (SLP_EN, and 5 for S5).
    pub const POWER_OFF: u8 = SLEEP_ENABLE | (5 << 2);
    /// Written to the reset register: reset.
    pub const RESET: u8 = 1;
    /// Event bit: the power button was pressed.
    pub const POWER_BUTTON: u8 = 1;
    /// Event bit: the VM generation id changed.
    pub const GENERATION: u8 = 2;

    /// Registers that report to `events`; `irq` is the interrupt of the generic event device.
    pub fn new(irq: EventFd, events: MachineEvents) -> Self {
        Self {
            pending: AtomicU8::new(0),
            irq,
            events,
        }
    }

    /// Presses the power button. What comes of it is up to the guest.
    pub fn press_power_button(&self) {
        self.announce(Self::POWER_BUTTON);
    }

    /// Says that the VM generation id has changed.
    pub fn announce_generation(&self) {
        self.announce(Self::GENERATION);
    }

    fn announce(&self, event: u8) {
        self.pending.fetch_or(event, Ordering::AcqRel);
        // It fails only when the counter is full, and then an interrupt is pending anyway.
        let _ = self.irq.write(1);
    }

    /// What the registers remember.
    pub fn save(&self) -> AcpiPmState {
        AcpiPmState {
            events: self.pending.load(Ordering::Acquire),
        }
    }

    /// Becomes what was saved. Pending events are announced anew.
    pub fn restore(&self, state: AcpiPmState) {
        self.pending.store(state.events, Ordering::Release);
        if state.events != 0 {
            let _ = self.irq.write(1);
        }
    }

    fn sleep(&self, value: u8) {
        if value & SLEEP_BITS == Self::POWER_OFF {
            (self.events)(MachineEvent::Shutdown);
        } else if value & SLEEP_ENABLE != 0 {
            warn_guest!("the guest asked for a sleep state that the machine does not have ({value:#04x})");
        }
    }
}

impl BusDevice for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| match at {
            EVENT => Some(self.pending.swap(0, Ordering::AcqRel)),
            0..Self::PORTS => Some(0),
            _ => None,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        write_bytes(offset, data, |at, value| match at {
            SLEEP_CONTROL => self.sleep(value),
            RESET_REGISTER if value == Self::RESET => (self.events)(MachineEvent::Reset),
            _ => {}
        });
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::super::tests::{Log, byte};
    use super::*;

    fn device(log: &Log) -> (AcpiPm, EventFd) {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        (AcpiPm::new(irq.try_clone().unwrap(), log.events()), irq)
    }

    #[test]
    fn power_off_and_reset_want_their_exact_values() {
        let log = Log::default();
        let (device, _) = device(&log);
        // SLP_EN alone, another sleep type, S5 without SLP_EN, and wrong reset values.
        for (offset, value) in [
            (0, 0x20),
            (0, 0x2c),
            (0, 0x14),
            (1, 0x34),
            (2, 0),
            (2, 6),
            (3, 1),
            (4, 1),
        ] {
            device.write(offset, &[value]);
        }
        assert_eq!(log.take(), []);
        device.write(0, &[0x34]);
        device.write(2, &[1]);
        assert_eq!(log.take(), [MachineEvent::Shutdown, MachineEvent::Reset]);
    }

    #[test]
    fn reserved_bits_do_not_keep_a_guest_from_powering_off() {
        let log = Log::default();
        let (device, _) = device(&log);
        device.write(0, &[0x34 | 0xc3]);
        assert_eq!(log.take(), [MachineEvent::Shutdown]);
    }

    #[test]
    fn the_power_button_interrupts_and_is_read_once() {
        let (device, irq) = device(&Log::default());
        device.press_power_button();
        device.press_power_button();
        assert_eq!(irq.read().unwrap(), 2);
        assert_eq!([byte(&device, 4), byte(&device, 4)], [1, 0]);
        assert_eq!([0, 1, 2, 3].map(|at| byte(&device, at)), [0; 4]);
    }

    #[test]
    fn a_restored_event_is_announced_again() {
        let (before, _) = device(&Log::default());
        before.press_power_button();
        let (after, irq) = device(&Log::default());
        after.restore(before.save());
        assert_eq!(irq.read().unwrap(), 1);
        assert_eq!(after.save(), before.save());
        assert_eq!(byte(&after, 4), 1);
    }
}

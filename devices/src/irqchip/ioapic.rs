//! The I/O APIC (Intel 82093AA data sheet, section 3): 24 pins, each of which becomes a message to a local APIC.
//!
//! A pin's redirection entry is translated into an MSI route when the guest changes it; from then on KVM delivers the
//! pin's irqfd by itself. All our devices pulse their lines, so pins are edges. An edge that comes while its pin is
//! masked would be lost with the route; so a pin that is unmasked again gets one interrupt for good measure, which
//! every driver must bear anyway (lines are shared and interrupts may be spurious).

use std::sync::Mutex;

use crate::bus::BusDevice;

/// Number of pins, and of redirection entries.
pub const PINS: usize = 24;

/// Version 0x20: an I/O APIC with an EOI register.
const VERSION: u32 = 0x20;

const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_REDIRECTION: u8 = 0x10;

const ENTRY_MASKED: u64 = 1 << 16;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_DELIVERY_STATUS: u64 = 1 << 12;
const ENTRY_LOGICAL: u64 = 1 << 11;

/// A message-signalled interrupt as a local APIC takes it (Intel SDM volume 3, section 11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Destination, with the top bits 0xfee.
    pub address: u32,
    /// Vector, delivery mode and trigger mode.
    pub data: u32,
}

/// Who turns a pin into a route. In a VM that is KVM's GSI routing table.
pub trait PinRouter: Send + Sync {
    /// The interrupt of `pin` goes to `message` from now on, or nowhere.
    fn route(&self, pin: usize, message: Option<MsiMessage>);
    /// The same for every pin at once, which a router may do faster.
    fn route_all(&self, messages: [Option<MsiMessage>; PINS]) {
        for (pin, message) in messages.into_iter().enumerate() {
            self.route(pin, message);
        }
    }
    /// Delivers the interrupt of `pin` once.
    fn pulse(&self, pin: usize);
}

/// All that an I/O APIC remembers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IoApicState {
    /// I/O APIC id, 4 bits.
    pub id: u8,
    /// The register that the window shows.
    pub select: u8,
    /// Redirection entries by pin.
    pub entries: [u64; PINS],
}

impl Default for IoApicState {
    fn default() -> Self {
        Self {
            id: 0,
            select: 0,
            entries: [ENTRY_MASKED; PINS],
        }
    }
}

/// The I/O APIC's registers: select at 0x00, window at 0x10, EOI at 0x40.
pub struct IoApic<R> {
    state: Mutex<IoApicState>,
    router: R,
}

impl<R: PinRouter> IoApic<R> {
    /// An I/O APIC as after reset: every pin masked.
    pub fn new(router: R) -> Self {
        Self {
            state: Mutex::new(IoApicState::default()),
            router,
        }
    }

    /// What it remembers.
    pub fn save(&self) -> IoApicState {
        self.lock().clone()
    }

    /// Becomes what was saved, routes included.
    pub fn restore(&self, state: IoApicState) {
        self.router.route_all(state.entries.map(message_of));
        *self.lock() = state;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, IoApicState> {
        // A poisoned lock still guards plain registers; there is no broken invariant to flee from.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn read_window(&self) -> u32 {
        let state = self.lock();
        match state.select {
            REG_ID | REG_ARBITRATION => u32::from(state.id) << 24,
            REG_VERSION => VERSION | ((PINS as u32 - 1) << 16),
            select => match entry_index(select) {
                Some((pin, high)) => (state.entries[pin] >> if high { 32 } else { 0 }) as u32,
                None => 0,
            },
        }
    }

    fn write_window(&self, value: u32) {
        let mut state = self.lock();
        match state.select {
            REG_ID => state.id = (value >> 24) as u8 & 0xf,
            select => {
                if let Some((pin, high)) = entry_index(select) {
                    let old = state.entries[pin];
                    let new = merge(old, value, high);
                    state.entries[pin] = new;
                    self.apply(pin, old, new);
                }
            }
        }
    }

    /// Tells the router where a changed entry leads. The registers' lock is held, so routes change in the order of
    /// the writes that caused them.
    fn apply(&self, pin: usize, old: u64, new: u64) {
        let (before, after) = (message_of(old), message_of(new));
        if before != after {
            self.router.route(pin, after);
        }
        // A vector is there but was masked: the pin worked before, and an edge may have come meanwhile.
        if before.is_none() && after.is_some() && message_of(old & !ENTRY_MASKED).is_some() {
            self.router.pulse(pin);
        }
    }
}

/// Pin and half of the entry that register `select` shows.
fn entry_index(select: u8) -> Option<(usize, bool)> {
    let index = usize::from(select.checked_sub(REG_REDIRECTION)?);
    (index / 2 < PINS).then_some((index / 2, index % 2 == 1))
}

/// `entry` with one half written; read-only bits keep their value.
fn merge(entry: u64, value: u32, high: bool) -> u64 {
    const READ_ONLY: u64 = ENTRY_REMOTE_IRR | ENTRY_DELIVERY_STATUS;
    let value = u64::from(value);
    let written = if high {
        (entry & 0xffff_ffff) | (value << 32)
    } else {
        (entry & !0xffff_ffff) | value
    };
    (written & !READ_ONLY & 0xff00_0000_0001_ffff) | (entry & READ_ONLY)
}

/// The message that an entry stands for; none if it is masked or has no valid vector.
fn message_of(entry: u64) -> Option<MsiMessage> {
    let vector = entry as u32 & 0xff;
    if entry & ENTRY_MASKED != 0 || vector < 0x10 {
        return None;
    }
    let destination = (entry >> 56) as u32;
    let logical = u32::from(entry & ENTRY_LOGICAL != 0);
    let delivery = (entry >> 8) as u32 & 7;
    let level = u32::from(entry & ENTRY_LEVEL != 0);
    Some(MsiMessage {
        address: 0xfee0_0000 | (destination << 12) | (logical << 2),
        // A level message must say "assert".
        data: vector | (delivery << 8) | (level << 14) | (level << 15),
    })
}

impl<R: PinRouter> BusDevice for IoApic<R> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            0x00 => u32::from(self.lock().select),
            0x10 => self.read_window(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        match offset {
            0x00 => self.lock().select = value as u8,
            0x10 => self.write_window(value),
            // EOI (0x40): our lines are pulses, nothing waits for it.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<(usize, Option<MsiMessage>)>>, Mutex<Vec<usize>>);

    impl PinRouter for &Log {
        fn route(&self, pin: usize, message: Option<MsiMessage>) {
            self.0.lock().unwrap().push((pin, message));
        }
        fn pulse(&self, pin: usize) {
            self.1.lock().unwrap().push(pin);
        }
    }

    fn write<R: PinRouter>(apic: &IoApic<R>, register: u8, value: u32) {
        apic.write(0, &u32::from(register).to_le_bytes());
        apic.write(0x10, &value.to_le_bytes());
    }

    fn read<R: PinRouter>(apic: &IoApic<R>, register: u8) -> u32 {
        let mut data = [0; 4];
        apic.write(0, &u32::from(register).to_le_bytes());
        apic.read(0x10, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn an_unmasked_entry_becomes_the_message_that_the_manual_says() {
        let log = Log::default();
        let apic = IoApic::new(&log);
        write(&apic, 0x10 + 2 * 5 + 1, 0x0300_0000);
        assert!(log.0.lock().unwrap().is_empty(), "the pin is still masked");
        write(&apic, 0x10 + 2 * 5, 0x0000_0931);
        let expected = MsiMessage {
            address: 0xfee0_3004,
            data: 0x131,
        };
        assert_eq!(*log.0.lock().unwrap(), [(5, Some(expected))]);
        assert!(
            log.1.lock().unwrap().is_empty(),
            "a pin that never worked has missed nothing"
        );

        write(&apic, 0x10 + 2 * 5, 0x0001_0931);
        assert_eq!(log.0.lock().unwrap().last(), Some(&(5, None)));
        write(&apic, 0x10 + 2 * 5, 0x0000_0931);
        assert_eq!(log.0.lock().unwrap().last(), Some(&(5, Some(expected))));
        assert_eq!(
            *log.1.lock().unwrap(),
            [5],
            "an edge may have come while it was masked"
        );
    }

    #[test]
    fn level_entries_assert_and_read_only_bits_stay() {
        let log = Log::default();
        let apic = IoApic::new(&log);
        write(&apic, 0x10, !(ENTRY_MASKED as u32));
        let (_, message) = log.0.lock().unwrap()[0];
        assert_eq!(message.unwrap().data, 0xc7ff);
        assert_eq!(
            read(&apic, 0x10) & (ENTRY_REMOTE_IRR | ENTRY_DELIVERY_STATUS) as u32,
            0
        );
    }

    #[test]
    fn identity_and_version_read_as_linux_expects() {
        let log = Log::default();
        let apic = IoApic::new(&log);
        write(&apic, 0, 0xff00_0000);
        assert_eq!(read(&apic, 0), 0x0f00_0000);
        assert_eq!(read(&apic, 1), 0x0017_0020);
        assert_eq!(read(&apic, 0xff), 0);
    }

    #[test]
    fn every_register_and_access_size_is_survived() {
        let log = Log::default();
        let apic = IoApic::new(&log);
        for select in 0..=255u8 {
            for size in 1..=8 {
                apic.write(0, &[select; 8][..size]);
                apic.write(0x10, &[0xa5; 8][..size]);
                let mut data = [0; 8];
                apic.read(0x10, &mut data[..size]);
                apic.read(0xff8, &mut data[..size]);
            }
        }
    }

    #[test]
    fn restore_brings_registers_and_routes_back() {
        let log = Log::default();
        let apic = IoApic::new(&log);
        write(&apic, 0x10 + 2 * 7, 0x31);
        let state = apic.save();
        let other = Log::default();
        let restored = IoApic::new(&other);
        restored.restore(state.clone());
        assert_eq!(restored.save(), state);
        assert_eq!(
            other.0.lock().unwrap()[7].1,
            Some(MsiMessage {
                address: 0xfee0_0000,
                data: 0x31
            })
        );
    }
}

//! The devices of a PC that a kernel finds at fixed ports, and a few of a virtual machine's own.
//!
//! | ports | device |
//! |---|---|
//! | 0x3f8, 0x2f8 (8 each) | [`SerialPort`]: 16550, interrupts both ways |
//! | 0x40 (4), 0x61 | [`Pit`]: counters that run, without an interrupt, and the gate of the third |
//! | 0x60, 0x64 | [`I8042`]: keyboard controller; resets the machine, sends Ctrl-Alt-Del |
//! | 0x70 (2) | [`Cmos`]: clock with the host's time |
//! | 0x80 | [`DelayPort`]: takes the writes that kernels make to wait a microsecond |
//! | 0xf4 | [`ExitPort`]: ends the VM with a status |
//! | 0xf5 | [`ReadyPort`]: a guest says that it waits for its work |
//! | 0x505 | [`Pvpanic`]: a guest kernel says that it crashed |
//! | 0x600 (5) | [`AcpiPm`]: power off, reset, power button |
//!
//! All of them are byte wide. As on an ISA bus, a wider access is one access per byte, to consecutive ports; bytes past a
//! device's range are left as the bus gave them. Where the ranges lie is the caller's affair: offsets count from their first
//! port. A device whose ports do not lie together is placed in pieces, see [`At`].

#![forbid(unsafe_code)]

mod acpi_pm;
mod cmos;
mod delay;
mod exit;
mod i8042;
mod keyboard;
mod pit;
mod pvpanic;
mod ready;
mod serial;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use acpi_pm::{AcpiPm, AcpiPmState};
pub use cmos::{Clock, Cmos, CmosState, DateTime};
pub use delay::DelayPort;
pub use exit::ExitPort;
pub use i8042::{I8042, I8042State};
pub use keyboard::KeyboardState;
pub use pit::{CounterState, Pit, PitState};
pub use pvpanic::Pvpanic;
pub use ready::ReadyPort;
pub use serial::{SerialPort, SerialPortState};

use crate::bus::BusDevice;

/// What a guest does to the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEvent {
    /// It powered itself off.
    Shutdown,
    /// It asked for a reset.
    Reset,
    /// It wrote this status to the exit port.
    Exit(u8),
    /// It has started and waits for what it is to do: the moment for a snapshot.
    Ready,
    /// Its kernel panicked.
    Panicked,
    /// Its kernel crashed and has loaded another one that looks into it.
    CrashLoaded,
}

/// Whom the devices tell of it. Called on the vCPU's thread, with no lock of the device held.
pub type MachineEvents = Arc<dyn Fn(MachineEvent) + Send + Sync>;

/// A device seen from `offset` bytes into its range: for those whose ports have others between them.
///
/// The keyboard controller has its data at port 0x60 and its commands at 0x64: `bus.insert(0x60, 1, i8042.clone())` and
/// `bus.insert(0x64, 1, Arc::new(At::new(i8042, 4)))`.
pub struct At {
    device: Arc<dyn BusDevice>,
    offset: u64,
}

impl At {
    /// `device` from `offset` on.
    pub fn new(device: Arc<dyn BusDevice>, offset: u64) -> Self {
        Self { device, offset }
    }
}

impl BusDevice for At {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read(offset.saturating_add(self.offset), data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device.write(offset.saturating_add(self.offset), data);
    }
}

/// Reads one register per byte. `None` leaves the byte as it is: no such register.
fn read_bytes(offset: u64, data: &mut [u8], mut register: impl FnMut(u64) -> Option<u8>) {
    for (at, byte) in (0..).zip(data) {
        if let Some(value) = register(offset.saturating_add(at)) {
            *byte = value;
        }
    }
}

/// Writes one register per byte.
fn write_bytes(offset: u64, data: &[u8], mut register: impl FnMut(u64, u8)) {
    for (at, byte) in (0..).zip(data) {
        register(offset.saturating_add(at), *byte);
    }
}

/// Registers are plain numbers: after a panic elsewhere they are as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

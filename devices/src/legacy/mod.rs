//! The devices of a PC that guests expect at fixed ports: serial, keyboard controller, clock, and ways to end.
//!
//! Offsets are relative to a device's first port. A byte-wide register takes the access that begins at it; the further bytes of a
//! wider one go to the registers behind.

mod acpi_pm;
mod cmos;
mod endings;
mod i8042;
mod pit;
mod serial;

use std::sync::Arc;

pub use acpi_pm::AcpiPm;
pub use cmos::Cmos;
pub use endings::{ExitPort, Pvpanic};
pub use i8042::I8042;
pub use pit::PitStub;
pub use serial::SerialPort;

/// What a guest says of the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEvent {
    /// It powers off.
    Shutdown,
    /// It resets.
    Reset,
    /// It ends with this status (exit port).
    Exit(u8),
    /// Its kernel panicked (pvpanic).
    Panicked,
    /// Its kernel crashed and a crash kernel takes over (pvpanic).
    CrashLoaded,
}

/// Who hears it, on the vCPU thread that wrote the register. Must not wait for that vCPU.
pub type MachineEvents = Arc<dyn Fn(MachineEvent) + Send + Sync>;

#[cfg(test)]
pub(crate) mod test_events {
    use super::{MachineEvent, MachineEvents};
    use std::sync::{Arc, Mutex};

    /// Events that keeps what it heard.
    pub(crate) fn log() -> (MachineEvents, Arc<Mutex<Vec<MachineEvent>>>) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let events = log.clone();
        (Arc::new(move |event| events.lock().unwrap().push(event)), log)
    }
}

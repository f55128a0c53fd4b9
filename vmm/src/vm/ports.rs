//! The machine's port devices: which there are and where.

use std::io::Write;
use std::sync::Arc;

use berth_arch::x86_64::layout;
use berth_devices::bus::Bus;
use berth_devices::irqchip::PicStub;
use berth_devices::legacy::{
    AcpiPm, At, Cmos, DelayPort, ExitPort, I8042, MachineEvent, MachineEvents, Pit, Pvpanic, ReadyPort,
    SerialPort,
};

use super::BuildError;
use crate::console::panic::PanicMessage;
use crate::irq::IrqLines;
use crate::stop::{StopCell, StopReason};

/// The port devices that others have to do with.
pub(crate) struct Ports {
    /// All of them, by address.
    pub(crate) bus: Bus,
    /// The first serial port.
    pub(crate) com1: Arc<SerialPort>,
    /// Reset, and Ctrl-Alt-Del.
    pub(crate) i8042: Arc<I8042>,
    /// Power button, power off, reset.
    pub(crate) power: Arc<AcpiPm>,
}

/// What the serial ports' output goes to.
pub(crate) struct Outputs {
    pub(crate) com1: Box<dyn Write + Send>,
    /// The second port exists only where it leads somewhere.
    pub(crate) com2: Option<Box<dyn Write + Send>>,
}

impl Ports {
    pub(crate) fn new(
        lines: &IrqLines,
        outputs: Outputs,
        events: &MachineEvents,
    ) -> Result<Self, BuildError> {
        let mut bus = Bus::new();
        let serial = |gsi, output| {
            let refused = |cause| BuildError::Host {
                what: "an event descriptor",
                cause,
            };
            SerialPort::new(lines.line(gsi)?, output)
                .map(Arc::new)
                .map_err(refused)
        };
        let com1 = serial(layout::COM1_GSI, outputs.com1)?;
        bus.insert(layout::COM1_PORT.into(), layout::COM_PORTS.into(), com1.clone())?;
        if let Some(output) = outputs.com2 {
            let com2 = serial(layout::COM2_GSI, output)?;
            bus.insert(layout::COM2_PORT.into(), layout::COM_PORTS.into(), com2)?;
        }
        let power = Arc::new(AcpiPm::new(lines.line(layout::ACPI_EVENT_GSI)?, events.clone()));
        bus.insert(
            layout::ACPI_SLEEP_CONTROL_PORT.into(),
            AcpiPm::PORTS,
            power.clone(),
        )?;

        let i8042 = Arc::new(I8042::new(lines.line(layout::I8042_GSI)?, events.clone()));
        bus.insert(layout::I8042_DATA_PORT.into(), 1, i8042.clone())?;
        let commands = u64::from(layout::I8042_COMMAND_PORT - layout::I8042_DATA_PORT);
        bus.insert(
            layout::I8042_COMMAND_PORT.into(),
            1,
            Arc::new(At::new(i8042.clone(), commands)),
        )?;
        bus.insert(layout::CMOS_INDEX_PORT.into(), 2, Arc::new(Cmos::new()))?;
        bus.insert(
            layout::EXIT_PORT.into(),
            1,
            Arc::new(ExitPort::new(events.clone())),
        )?;
        bus.insert(
            layout::READY_PORT.into(),
            1,
            Arc::new(ReadyPort::new(events.clone())),
        )?;
        bus.insert(
            layout::PVPANIC_PORT.into(),
            1,
            Arc::new(Pvpanic::new(events.clone())),
        )?;
        for base in [0x20, 0xa0] {
            bus.insert(base, 2, Arc::new(PicStub::default()))?;
        }
        let pit = Arc::new(Pit::new());
        bus.insert(0x40, Pit::PORTS, pit.clone())?;
        bus.insert(0x61, 1, Arc::new(At::new(pit, Pit::PORT_61)))?;
        bus.insert(0x80, 1, Arc::new(DelayPort::default()))?;
        Ok(Self {
            bus,
            com1,
            i8042,
            power,
        })
    }
}

/// What the machine's own signs mean for the VM.
pub(crate) fn machine_events(stop: Arc<StopCell>, panic: PanicMessage) -> MachineEvents {
    Arc::new(move |event| {
        let reason = match event {
            MachineEvent::Shutdown => StopReason::Shutdown,
            MachineEvent::Exit(status) => StopReason::Exit(status),
            // A kernel that panics and is told to restart says so on its console only.
            MachineEvent::Reset => match panic.get() {
                Some(message) => StopReason::Panicked(Some(message)),
                None => StopReason::Reset,
            },
            MachineEvent::Ready => {
                tracing::debug!("the guest is ready");
                return;
            }
            MachineEvent::Panicked | MachineEvent::CrashLoaded => StopReason::Panicked(panic.get()),
        };
        stop.stop(reason);
    })
}

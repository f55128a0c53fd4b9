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
use crate::snapshot::{ComponentError, Components};
use crate::stop::{StopCell, StopReason};

/// The port devices, and where they lie.
pub(crate) struct Ports {
    /// All of them, by address.
    pub(crate) bus: Bus,
    /// Each of them.
    pub(crate) legacy: Legacy,
}

/// The port devices that remember something or that others have to do with.
pub(crate) struct Legacy {
    /// The first serial port.
    pub(crate) com1: Arc<SerialPort>,
    /// The second, where there is one.
    com2: Option<Arc<SerialPort>>,
    /// Power button, power off, reset.
    pub(crate) power: Arc<AcpiPm>,
    /// Reset, and Ctrl-Alt-Del.
    pub(crate) i8042: Arc<I8042>,
    cmos: Arc<Cmos>,
    pit: Arc<Pit>,
    pics: [Arc<PicStub>; 2],
}

impl Legacy {
    /// Adds what they remember.
    pub(crate) fn save(&self, components: &mut Components) -> Result<(), ComponentError> {
        components.put("com1", 1, &self.com1.save())?;
        if let Some(com2) = &self.com2 {
            components.put("com2", 1, &com2.save())?;
        }
        components.put("acpi-pm", 1, &self.power.save())?;
        components.put("i8042", 1, &self.i8042.save())?;
        components.put("cmos", 1, &self.cmos.save())?;
        components.put("pit", 1, &self.pit.save())?;
        for (index, pic) in self.pics.iter().enumerate() {
            components.put(format!("pic {index}"), 1, &pic.mask())?;
        }
        Ok(())
    }

    /// Becomes what was saved.
    pub(crate) fn restore(&self, components: &mut Components) -> Result<(), ComponentError> {
        self.com1.restore(&components.take("com1", 1)?);
        if let Some(com2) = &self.com2 {
            com2.restore(&components.take("com2", 1)?);
        }
        self.power.restore(components.take("acpi-pm", 1)?);
        self.i8042.restore(components.take("i8042", 1)?);
        self.cmos.restore(components.take("cmos", 1)?);
        self.pit.restore(components.take("pit", 1)?);
        for (index, pic) in self.pics.iter().enumerate() {
            pic.set_mask(components.take(&format!("pic {index}"), 1)?);
        }
        Ok(())
    }
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
        let com2 = match outputs.com2 {
            Some(output) => Some(serial(layout::COM2_GSI, output)?),
            None => None,
        };
        if let Some(com2) = &com2 {
            bus.insert(layout::COM2_PORT.into(), layout::COM_PORTS.into(), com2.clone())?;
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
        let cmos = Arc::new(Cmos::new());
        bus.insert(layout::CMOS_INDEX_PORT.into(), 2, cmos.clone())?;
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
        let pics = <[Arc<PicStub>; 2]>::default();
        for (base, pic) in [0x20, 0xa0].into_iter().zip(&pics) {
            bus.insert(base, 2, pic.clone())?;
        }
        let pit = Arc::new(Pit::new());
        bus.insert(0x40, Pit::PORTS, pit.clone())?;
        bus.insert(0x61, 1, Arc::new(At::new(pit.clone(), Pit::PORT_61)))?;
        bus.insert(0x80, 1, Arc::new(DelayPort::default()))?;
        let legacy = Legacy {
            com1,
            com2,
            power,
            i8042,
            cmos,
            pit,
            pics,
        };
        Ok(Self { bus, legacy })
    }
}

/// What the machine's own signs mean for the VM. `ready_by_port`: the port for it is how its guest says that it is ready.
pub(crate) fn machine_events(stop: Arc<StopCell>, panic: PanicMessage, ready_by_port: bool) -> MachineEvents {
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
                if ready_by_port {
                    stop.tell_ready();
                }
                return;
            }
            MachineEvent::Panicked | MachineEvent::CrashLoaded => StopReason::Panicked(panic.get()),
        };
        stop.stop(reason);
    })
}

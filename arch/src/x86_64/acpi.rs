//! ACPI tables: the machine as a kernel with ACPI finds it.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 3.11.1): no SCI, no PM timer, no event blocks. Power off and reset are byte registers, and the
//! power button and a new VM generation id are events of the generic event device. The tables lie in one piece from [`layout::ACPI_RSDP`] on:
//!
//! ```text
//! RSDP ─▶ XSDT ─┬▶ FADT ─▶ DSDT: serial ports, clock, pvpanic, virtio-mmio, event device, power button, generation id
//!               └▶ MADT: local APICs, IOAPIC
//! ```
#![forbid(unsafe_code)]

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, Store,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// How many vCPUs, with the APIC ids 0 to `cpus - 1`.
    pub cpus: u32,
    /// The devices, in the order in which they are to appear.
    pub devices: Vec<AcpiDevice>,
}

/// A device that the tables may describe. [`layout`] says where each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcpiDevice {
    /// The first serial port.
    Com1,
    /// The second serial port.
    Com2,
    /// The CMOS clock, without an alarm interrupt.
    CmosClock,
    /// The pvpanic port.
    Pvpanic,
    /// The device in this virtio-mmio window.
    VirtioMmio(usize),
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// APIC ids are 8 bits.
    #[error("ACPI tables describe 1 to {max} processors, not {0}", max = layout::MAX_CPUS)]
    Processors(u32),
    /// There are only so many windows.
    #[error("virtio-mmio window {0} does not exist; there are {max}", max = layout::VIRTIO_MMIO_MAX)]
    Window(usize),
    /// Guest memory does not reach to where the tables belong.
    #[error("the ACPI tables at {address:#x} do not fit in guest memory: {cause}", address = layout::ACPI_RSDP)]
    Memory {
        /// What was wrong.
        cause: GuestMemoryError,
    },
}

const OEM: [u8; 6] = *b"BERTH ";
const OEM_TABLE: [u8; 8] = *b"BERTH VM";
const OEM_REVISION: u32 = 1;
/// Tables begin at multiples of this.
const ALIGNMENT: usize = 16;

/// Writes the tables to guest memory. `boot_params` and the PVH start info take [`layout::ACPI_RSDP`].
pub fn write<M>(memory: &M, machine: &Machine) -> Result<(), AcpiError>
where
    M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
{
    let tables = tables(machine)?;
    memory
        .write_slice(&tables, GuestAddress(layout::ACPI_RSDP))
        .map_err(|cause| AcpiError::Memory { cause })
}

/// All tables as they lie from [`layout::ACPI_RSDP`] on.
pub fn tables(machine: &Machine) -> Result<Vec<u8>, AcpiError> {
    if !(1..=layout::MAX_CPUS).contains(&machine.cpus) {
        return Err(AcpiError::Processors(machine.cpus));
    }
    let mut image = vec![0; Rsdp::len()];
    let dsdt = place(&mut image, &dsdt(machine)?);
    let fadt = place(&mut image, &bytes(&fadt(dsdt)));
    let madt = place(&mut image, &bytes(&madt(machine.cpus as u8)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&mut image, &bytes(&xsdt));
    image[..Rsdp::len()].copy_from_slice(&bytes(&Rsdp::new(OEM, xsdt)));
    Ok(image)
}

/// Appends a table, aligned, and returns its address.
fn place(image: &mut Vec<u8>, table: &[u8]) -> u64 {
    image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
    let address = layout::ACPI_RSDP + image.len() as u64;
    image.extend_from_slice(table);
    address
}

fn bytes(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

/// Processors and IOAPIC. Without overrides, GSIs 0 to 15 are the ISA interrupts: edge, active high.
fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LAPIC as u32),
    );
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(cpus, layout::IOAPIC as u32, 0));
    madt
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    // There is no VGA; the bits for an 8042 and for devices on LPC stay clear, so that no driver waits for them.
    const NO_VGA: u16 = 1 << 2;
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        // Both buttons are devices or absent, not fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.reset_reg = port(layout::ACPI_RESET_PORT);
    fadt.reset_value = layout::ACPI_RESET;
    fadt.sleep_control_reg = port(layout::ACPI_SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::ACPI_SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn dsdt(machine: &Machine) -> Result<Vec<u8>, AcpiError> {
    const HEADER: u32 = 36;
    const REVISION: u8 = 2; // 64-bit integers
    let mut devices = vec![event_device(), power_button(), generation_id()];
    for &device in &machine.devices {
        devices.push(match device {
            AcpiDevice::Com1 => serial("COM1", 1, layout::COM1_PORT, layout::COM1_GSI),
            AcpiDevice::Com2 => serial("COM2", 2, layout::COM2_PORT, layout::COM2_GSI),
            AcpiDevice::CmosClock => {
                port_device("RTC_", &EISAName::new("PNP0B00"), layout::CMOS_INDEX_PORT, 2)
            }
            AcpiDevice::Pvpanic => port_device("PEVT", &"QEMU0001", layout::PVPANIC_PORT, 1),
            AcpiDevice::VirtioMmio(window) => virtio(window)?,
        });
    }
    let children = devices.iter().map(|device| device as &dyn Aml).collect();
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&bytes(&Scope::new("_SB_".into(), children)));
    let s5 = Package::new(vec![&layout::ACPI_S5_TYPE, &0u8, &0u8, &0u8]);
    dsdt.append_slice(&bytes(&Name::new("_S5_".into(), &s5)));
    Ok(dsdt.as_slice().to_vec())
}

/// AML that is already encoded.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn device(name: &str, children: Vec<&dyn Aml>) -> Encoded {
    Encoded(bytes(&Device::new(name.into(), children)))
}

fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(name.into(), value)
}

/// An interrupt as all of Berth's devices raise it: edge, active high.
fn edge(gsi: u32, shared: bool) -> Interrupt {
    Interrupt::new(true, true, false, shared, gsi)
}

fn ports(first: u16, count: u8) -> IO {
    IO::new(first, first, 1, count)
}

fn serial(path: &str, uid: u8, port: u16, gsi: u32) -> Encoded {
    let (ports, interrupt) = (ports(port, layout::COM_PORTS as u8), edge(gsi, false));
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    device(
        path,
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &uid),
            &name("_DDN", &if uid == 1 { "COM1" } else { "COM2" }),
            &name("_CRS", &resources),
        ],
    )
}

/// A device that is nothing but some ports.
fn port_device(path: &str, id: &dyn Aml, port: u16, count: u8) -> Encoded {
    let ports = ports(port, count);
    let resources = ResourceTemplate::new(vec![&ports]);
    device(path, vec![&name("_HID", id), &name("_CRS", &resources)])
}

/// A virtio-mmio window (the id is the one QEMU and Linux agreed on).
fn virtio(window: usize) -> Result<Encoded, AcpiError> {
    let address = layout::virtio_mmio_address(window).ok_or(AcpiError::Window(window))?;
    let memory = Memory32Fixed::new(true, address as u32, layout::VIRTIO_MMIO_SIZE as u32);
    let interrupt = edge(layout::virtio_gsi(window), true);
    let resources = ResourceTemplate::new(vec![&memory, &interrupt]);
    let coherent = 1u8;
    Ok(device(
        &format!("VM{window:02}"),
        vec![
            &name("_HID", &"LNRO0005"),
            &name("_UID", &(window as u8)),
            &name("_CCA", &coherent),
            &name("_CRS", &resources),
        ],
    ))
}

/// The generic event device (ACPI 6.5, 5.6.9.1): its interrupt makes the kernel read which events are pending, and tell whom they
/// concern.
fn event_device() -> Encoded {
    /// The device's own first notification: pressed, or changed.
    const NOTICE: u8 = 0x80;
    let interrupt = edge(layout::ACPI_EVENT_GSI, false);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let (port, length) = (layout::ACPI_EVENT_PORT, 1u8);
    let events = Path::new("EVTS");
    let field = Field::new(
        "EVTR".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVTS", 8)],
    );
    let nowhere = acpi_tables::aml::ZERO;
    let (button, power_button) = (layout::ACPI_EVENT_POWER_BUTTON, Path::new("\\_SB_.PWRB"));
    let pressed = And::new(&nowhere, &Local(0), &button);
    let notify = Notify::new(&power_button, &NOTICE);
    let tell_button = If::new(&pressed, vec![&notify]);
    let (generation, generation_id) = (layout::ACPI_EVENT_GENERATION, Path::new("\\_SB_.VGEN"));
    let changed = And::new(&nowhere, &Local(0), &generation);
    let notify = Notify::new(&generation_id, &NOTICE);
    let tell_generation = If::new(&changed, vec![&notify]);
    let read = Store::new(&Local(0), &events);
    let serialized = true;
    device(
        "GED_",
        vec![
            &name("_HID", &"ACPI0013"),
            &name("_UID", &0u8),
            &name("_CRS", &resources),
            &OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &port, &length),
            &field,
            &Method::new(
                "_EVT".into(),
                1,
                serialized,
                vec![&read, &tell_button, &tell_generation],
            ),
        ],
    )
}

fn power_button() -> Encoded {
    device(
        "PWRB",
        vec![&name("_HID", &EISAName::new("PNP0C0C")), &name("_UID", &0u8)],
    )
}

/// The VM generation id (Microsoft, "Virtual Machine Generation ID"): where its 16 bytes lie.
fn generation_id() -> Encoded {
    let (low, high) = (layout::VM_GENERATION_ID as u32, 0u32);
    let address = Package::new(vec![&low, &high]);
    device(
        "VGEN",
        vec![
            &name("_HID", &"BRTH0001"),
            &name("_CID", &"VM_Gen_Counter"),
            &name("_DDN", &"VM_Gen_Counter"),
            &name("ADDR", &address),
        ],
    )
}

#[cfg(test)]
mod tests;

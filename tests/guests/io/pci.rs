//! The virtio-pci transport, modern (virtio 1.3, section 4.1), on bus 0.
//!
//! Configuration space by ports 0xcf8 and 0xcfc, or by ECAM where the ports lead nowhere and ACPI's MCFG tells of it.

use crate::acpi;
use crate::interrupts;
use crate::mem::{in32, out32, read8, read16, read32, write8, write16, write32};
use crate::paging;
use crate::queue::Areas;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

const VIRTIO: u32 = 0x1af4;
const MODERN: u32 = 0x1040;
const COMMAND: u64 = 0x04;
/// Memory space and bus master.
const ENABLE: u32 = 6;
const BARS: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;
const MSIX: u32 = 0x11;
const VENDOR: u32 = 0x09;
const MSIX_ENABLE: u32 = 1 << 31;

/// Registers of the common configuration.
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
const NO_VECTOR: u16 = 0xffff;

/// A function's configuration space.
#[derive(Clone, Copy)]
struct Function {
    /// Where ECAM has it, or 0 where ports do.
    ecam: u64,
    device: u64,
}

impl Function {
    fn address(self, offset: u64) -> u32 {
        (1 << 31 | self.device << 11 | offset & 0xfc) as u32
    }

    /// `offset` is a multiple of 4.
    fn read(self, offset: u64) -> u32 {
        if self.ecam != 0 {
            return read32(self.ecam + offset);
        }
        out32(CONFIG_ADDRESS, self.address(offset));
        in32(CONFIG_DATA)
    }

    fn write(self, offset: u64, value: u32) {
        if self.ecam != 0 {
            return write32(self.ecam + offset, value);
        }
        out32(CONFIG_ADDRESS, self.address(offset));
        out32(CONFIG_DATA, value);
    }

    /// Where a memory BAR's window is.
    fn bar(self, index: u32) -> u64 {
        let at = BARS + 4 * index as u64;
        let low = self.read(at);
        let high = if low & 6 == 4 { self.read(at + 4) } else { 0 };
        (low & !15) as u64 | (high as u64) << 32
    }
}

pub struct Pci {
    function: Function,
    common: u64,
    notify: u64,
    multiplier: u64,
    config: u64,
    /// The MSI-X capability and its table.
    msix: Option<(u64, u64)>,
}

/// The virtio devices on bus 0 and their types, in the order of the slots.
///
/// `rsdp` is where ACPI's tables begin.
pub fn devices(rsdp: u64) -> impl Iterator<Item = (Pci, u32)> {
    // Ports that lead nowhere do not hold the address that was written.
    out32(CONFIG_ADDRESS, 1 << 31);
    let ecam = match in32(CONFIG_ADDRESS) {
        0x8000_0000 => Some(0),
        _ => acpi::ecam(rsdp).filter(|at| paging::map(*at, 1 << 20).is_ok()),
    };
    (0..32).filter_map(move |device| {
        let ecam = match ecam? {
            0 => 0,
            base => base + (device << 15),
        };
        let function = Function { ecam, device };
        let id = function.read(0);
        let modern = id & 0xffff == VIRTIO && id >> 16 > MODERN;
        if modern {
            Some((Pci::new(function).ok()?, (id >> 16) - MODERN))
        } else {
            None
        }
    })
}

impl Pci {
    fn new(function: Function) -> Result<Self, &'static str> {
        function.write(COMMAND, function.read(COMMAND) & 0xffff | ENABLE);
        let mut found = Self {
            function,
            common: 0,
            notify: 0,
            multiplier: 0,
            config: 0,
            msix: None,
        };
        let mut at = function.read(CAPABILITIES) as u64 & 0xfc;
        while at != 0 {
            let head = function.read(at);
            match head & 0xff {
                VENDOR => {
                    let bar = function.bar(function.read(at + 4) & 0xff);
                    let window = bar + function.read(at + 8) as u64;
                    let known = match head >> 24 {
                        1 => &mut found.common,
                        2 => {
                            found.multiplier = function.read(at + 16) as u64;
                            &mut found.notify
                        }
                        4 => &mut found.config,
                        _ => &mut 0,
                    };
                    if bar != 0 && *known == 0 {
                        paging::map(window, function.read(at + 12) as u64)?;
                        *known = window;
                    }
                }
                MSIX => {
                    let place = function.read(at + 4);
                    let table = function.bar(place & 7) + (place & !7) as u64;
                    paging::map(table, 4096)?;
                    found.msix = Some((at, table));
                }
                _ => (),
            }
            at = (head >> 8) as u64 & 0xfc;
        }
        if found.common == 0 || found.notify == 0 {
            return Err("the PCI device has no place for its registers");
        }
        Ok(found)
    }

    /// Sets the first MSI-X vector to our message and switches it on; queues then use it.
    pub fn enable_messages(&self) {
        let Some((capability, table)) = self.msix else {
            return;
        };
        let (address, data) = interrupts::message();
        for (offset, value) in [
            (0, address as u32),
            (4, (address >> 32) as u32),
            (8, data),
            (12, 0),
        ] {
            write32(table + offset, value);
        }
        let control = self.function.read(capability);
        self.function
            .write(capability, control & !(1 << 30) | MSIX_ENABLE);
        write16(self.common + CONFIG_VECTOR, NO_VECTOR);
    }

    pub fn status(&self) -> u32 {
        read8(self.common + STATUS) as u32
    }

    pub fn set_status(&self, status: u32) {
        write8(self.common + STATUS, status as u8);
    }

    pub fn features(&self) -> u64 {
        let half = |index: u32| {
            write32(self.common + DEVICE_FEATURE_SELECT, index);
            read32(self.common + DEVICE_FEATURE) as u64
        };
        half(0) | half(1) << 32
    }

    pub fn set_features(&self, features: u64) {
        for (index, half) in [features as u32, (features >> 32) as u32].into_iter().enumerate() {
            write32(self.common + DRIVER_FEATURE_SELECT, index as u32);
            write32(self.common + DRIVER_FEATURE, half);
        }
    }

    pub fn queue_size(&self, index: u16) -> u16 {
        write16(self.common + QUEUE_SELECT, index);
        read16(self.common + QUEUE_SIZE)
    }

    /// Starts a queue, with interrupts or without; where it is notified, and by what value.
    pub fn start_queue(&self, index: u16, size: u16, areas: Areas, interrupts: bool) -> (u64, u32) {
        write16(self.common + QUEUE_SELECT, index);
        write16(self.common + QUEUE_SIZE, size);
        if self.msix.is_some() {
            write16(self.common + QUEUE_VECTOR, if interrupts { 0 } else { NO_VECTOR });
        }
        for (register, at) in [
            (QUEUE_DESC, areas.descriptors),
            (QUEUE_DRIVER, areas.driver),
            (QUEUE_DEVICE, areas.device),
        ] {
            write32(self.common + register, at as u32);
            write32(self.common + register + 4, (at >> 32) as u32);
        }
        let offset = read16(self.common + QUEUE_NOTIFY_OFF) as u64 * self.multiplier;
        write16(self.common + QUEUE_ENABLE, 1);
        (self.notify + offset, index as u32)
    }

    pub fn config8(&self, offset: u64) -> u8 {
        read8(self.config + offset)
    }
}

//! The virtio-mmio transport (virtio 1.3, section 4.2): registers in a window that the command line names.

use crate::mem::{read8, read32, write32};
use crate::options::Window;
use crate::queue::Areas;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG: u64 = 0x100;

pub struct Mmio {
    base: u64,
    pub irq: u32,
}

impl Mmio {
    /// The device in a window and its type, if there is one that is not of before version 1.
    pub fn find(window: Window) -> Option<(Self, u32)> {
        let base = window.base;
        let modern = read32(base + MAGIC) == u32::from_le_bytes(*b"virt") && read32(base + VERSION) == 2;
        let kind = if modern { read32(base + DEVICE_ID) } else { 0 };
        let found = Self {
            base,
            irq: window.irq,
        };
        (kind != 0).then_some((found, kind))
    }

    pub fn status(&self) -> u32 {
        read32(self.base + STATUS)
    }

    pub fn set_status(&self, status: u32) {
        write32(self.base + STATUS, status);
    }

    pub fn features(&self) -> u64 {
        let half = |index: u32| {
            write32(self.base + DEVICE_FEATURES_SEL, index);
            read32(self.base + DEVICE_FEATURES) as u64
        };
        half(0) | half(1) << 32
    }

    pub fn set_features(&self, features: u64) {
        for (index, half) in [features as u32, (features >> 32) as u32].into_iter().enumerate() {
            write32(self.base + DRIVER_FEATURES_SEL, index as u32);
            write32(self.base + DRIVER_FEATURES, half);
        }
    }

    pub fn queue_size(&self, index: u16) -> u16 {
        write32(self.base + QUEUE_SEL, index as u32);
        read32(self.base + QUEUE_NUM_MAX) as u16
    }

    /// Starts a queue; where it is notified, and by what value.
    pub fn start_queue(&self, index: u16, size: u16, areas: Areas) -> (u64, u32) {
        write32(self.base + QUEUE_SEL, index as u32);
        write32(self.base + QUEUE_NUM, size as u32);
        for (register, at) in [
            (QUEUE_DESC, areas.descriptors),
            (QUEUE_DRIVER, areas.driver),
            (QUEUE_DEVICE, areas.device),
        ] {
            write32(self.base + register, at as u32);
            write32(self.base + register + 4, (at >> 32) as u32);
        }
        write32(self.base + QUEUE_READY, 1);
        (self.base + QUEUE_NOTIFY, index as u32)
    }

    pub fn acknowledge(&self) {
        let status = read32(self.base + INTERRUPT_STATUS);
        write32(self.base + INTERRUPT_ACK, status);
    }

    pub fn config8(&self, offset: u64) -> u8 {
        read8(self.base + CONFIG + offset)
    }
}

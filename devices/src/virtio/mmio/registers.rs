//! Register accesses: which there are, and what they do to the transport.

use virtio_bindings::bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK};

use super::{MmioTransport, QueueSetup, Registers};
use crate::bus::BusDevice;
use crate::warn_guest;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"Brth");

/// Where the configuration space begins. Below it only aligned accesses of 32 bits exist.
const CONFIG: u64 = 0x100;

mod reg {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const SHM_SEL: u64 = 0x0ac;
    pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            self.read_config(offset - CONFIG, data);
            return;
        }
        data.fill(0);
        match <&mut [u8; 4]>::try_from(data) {
            Ok(data) if offset.is_multiple_of(4) => *data = self.read_register(offset).to_le_bytes(),
            _ => {
                warn_guest!(
                    "virtio-{}: read at {offset:#x} is not an aligned one of 4 bytes",
                    self.traits.name
                );
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            self.write_config(offset - CONFIG, data);
            return;
        }
        match <[u8; 4]>::try_from(data) {
            Ok(data) if offset.is_multiple_of(4) => self.write_register(offset, u32::from_le_bytes(data)),
            _ => {
                warn_guest!(
                    "virtio-{}: write at {offset:#x} is not an aligned one of 4 bytes",
                    self.traits.name
                );
            }
        }
    }
}

impl MmioTransport {
    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => self.traits.kind,
            reg::VENDOR_ID => VENDOR,
            // These three are read and written while queues run, so they take no lock.
            reg::INTERRUPT_STATUS => self.shared.interrupt_status(),
            reg::STATUS => self.shared.status(),
            reg::CONFIG_GENERATION => self.shared.generation(),
            reg::DEVICE_FEATURES => window(self.offered(), self.lock().device_features_sel),
            reg::QUEUE_SIZE_MAX => {
                let select = self.lock().queue_sel as usize;
                self.traits.queue_sizes.get(select).copied().unwrap_or(0).into()
            }
            reg::QUEUE_READY => {
                let mut registers = self.lock();
                registers.selected().is_some_and(|(_, setup)| setup.ready).into()
            }
            // No shared memory regions: length and base of all ones.
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            reg::QUEUE_NOTIFY => self.notify(value),
            reg::INTERRUPT_ACK => self.shared.acknowledge(value),
            reg::STATUS => self.write_status(value),
            reg::QUEUE_READY => self.write_queue_ready(value),
            reg::DEVICE_FEATURES_SEL => self.lock().device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.lock().driver_features_sel = value,
            reg::DRIVER_FEATURES => self.write_driver_features(value),
            reg::QUEUE_SEL => self.lock().queue_sel = value,
            reg::QUEUE_SIZE => self.set_up(|setup| setup.size = value),
            reg::QUEUE_DESC_LOW => self.set_up(|setup| set_low(&mut setup.desc, value)),
            reg::QUEUE_DESC_HIGH => self.set_up(|setup| set_high(&mut setup.desc, value)),
            reg::QUEUE_DRIVER_LOW => self.set_up(|setup| set_low(&mut setup.driver, value)),
            reg::QUEUE_DRIVER_HIGH => self.set_up(|setup| set_high(&mut setup.driver, value)),
            reg::QUEUE_DEVICE_LOW => self.set_up(|setup| set_low(&mut setup.device, value)),
            reg::QUEUE_DEVICE_HIGH => self.set_up(|setup| set_high(&mut setup.device, value)),
            // There is no shared memory region to select.
            reg::SHM_SEL => {}
            _ => warn_guest!(
                "virtio-{}: write to read-only register {offset:#x}",
                self.traits.name
            ),
        }
    }

    fn notify(&self, queue: u32) {
        match self.kicks.get(queue as usize) {
            Some(kick) if self.shared.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0 => {
                // It fails only when the counter is full, and then a notification is pending anyway.
                let _ = kick.write(1);
            }
            _ => warn_guest!(
                "virtio-{}: notification of queue {queue}, which does not run",
                self.traits.name
            ),
        }
    }

    /// Changes the selected queue's set-up, which a driver may do until the queue is ready.
    fn set_up(&self, change: impl FnOnce(&mut QueueSetup)) {
        let mut registers = self.lock();
        match registers.selected() {
            Some((_, setup)) if !setup.ready => change(setup),
            _ => warn_guest!(
                "virtio-{}: set-up of queue {}, which is ready or does not exist",
                self.traits.name,
                registers.queue_sel
            ),
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(len) = self.config_part(offset, data.len()) {
            self.device.read_config(offset, &mut data[..len]);
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        match self.config_part(offset, data.len()) {
            Some(len) if self.shared.status() & VIRTIO_CONFIG_S_DRIVER != 0 => {
                self.device.write_config(offset, &data[..len]);
            }
            _ => warn_guest!(
                "virtio-{}: write to the configuration at {offset:#x}, past its end or with no driver",
                self.traits.name
            ),
        }
    }

    /// How many of `len` bytes at `offset` lie in the configuration space, if any.
    fn config_part(&self, offset: u64, len: usize) -> Option<usize> {
        let left = self
            .traits
            .config_len
            .checked_sub(offset)
            .filter(|left| *left > 0)?;
        Some(len.min(usize::try_from(left).unwrap_or(usize::MAX)))
    }
}

impl Registers {
    pub(super) fn selected(&mut self) -> Option<(u16, &mut QueueSetup)> {
        let index = u16::try_from(self.queue_sel).ok()?;
        self.queues
            .get_mut(usize::from(index))
            .map(|setup| (index, setup))
    }
}

/// 32 of 64 bits. Higher ones than there are read as 0.
fn window(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}

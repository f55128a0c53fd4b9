//! The part of the registers that a device's I/O thread touches: atomics only, so that it never waits for a vCPU.

use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::device::DeviceInterrupt;

/// InterruptStatus: a buffer was used.
const USED_BUFFER: u32 = 1;
/// InterruptStatus: the configuration, or the need of a reset, changed.
const CONFIG_CHANGE: u32 = 2;

pub(super) struct Shared {
    status: AtomicU32,
    interrupt_status: AtomicU32,
    generation: AtomicU32,
    irq: EventFd,
}

impl Shared {
    pub(super) fn new(irq: EventFd) -> Self {
        Self {
            status: AtomicU32::new(0),
            interrupt_status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            irq,
        }
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    pub(super) fn add_status(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    pub(super) fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(Ordering::Acquire)
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The driver handled these interrupts.
    pub(super) fn acknowledge(&self, bits: u32) {
        let left = self.interrupt_status.fetch_and(!bits, Ordering::AcqRel) & !bits;
        // The line of the specification would still be high. Ours knows edges only, so it gets another.
        if left != 0 {
            self.pulse();
        }
    }

    /// Repeats the interrupt if one was not acknowledged.
    pub(super) fn raise_again(&self) {
        if self.interrupt_status() != 0 {
            self.pulse();
        }
    }

    /// After the queues were stopped, so nobody sets bits meanwhile.
    pub(super) fn reset(&self) {
        self.interrupt_status.store(0, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }

    pub(super) fn restore(&self, status: u32, interrupt_status: u32, generation: u32) {
        self.generation.store(generation, Ordering::Release);
        self.interrupt_status.store(interrupt_status, Ordering::Release);
        self.status.store(status, Ordering::Release);
    }

    fn raise(&self, bit: u32) {
        // An edge even if the bit is set already: the earlier edge may have been lost while the pin was masked, or be under
        // way to a handler that has read the status. How many edges there are the driver decides in its rings.
        self.interrupt_status.fetch_or(bit, Ordering::AcqRel);
        self.pulse();
    }

    fn pulse(&self) {
        // It fails only when the counter is full, and then an interrupt is pending anyway.
        let _ = self.irq.write(1);
    }
}

impl DeviceInterrupt for Shared {
    fn used_buffer(&self, _index: u16) {
        self.raise(USED_BUFFER);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // A driver that is not there yet must not be interrupted; it will read the new values anyway.
        if self.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.raise(CONFIG_CHANGE);
        }
    }

    fn needs_reset(&self) {
        self.add_status(VIRTIO_CONFIG_S_NEEDS_RESET);
        if self.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.raise(CONFIG_CHANGE);
        }
    }
}
